//! Deleting capabilities, and destroying the objects whose owned capability goes.
//!
//! Bounded: a call deletes at most [`DELETIONS_MAX`] capabilities and then asks to be repeated. Deleting
//! always takes the last descendant first, so an interrupted deletion leaves a consistent, smaller tree.

use proto::abi::{Error, ObjectType, ThreadState};

use crate::cap::{Cap, DONATED, OWNED, PINNED};
use crate::cpu;
use crate::frames;
use crate::object::domain::Domain;
use crate::object::event::Event;
use crate::object::irq;
use crate::object::space::SpaceRef;
use crate::object::thread::Thread;
use crate::object::vcpu::Vcpu;
use crate::object::vm::Vm;
use crate::object::{Object, from_address};

/// Capabilities that one system call deletes at most.
pub const DELETIONS_MAX: u32 = 32;

/// Deletes everything derived from a capability.
///
/// # Errors
/// `Restart`; `Busy` when a descendant is pinned.
pub fn revoke(cap: &'static Cap, budget: &mut u32) -> Result<(), Error> {
    while let Some(child) = cap.first_child() {
        // The deepest first: walk down the first children.
        let mut leaf = child;
        while let Some(deeper) = leaf.first_child() {
            leaf = deeper;
        }
        delete_leaf(leaf, budget)?;
    }
    Ok(())
}

/// Deletes a capability and everything derived from it.
///
/// # Errors
/// `Restart`; `Busy` when it or a descendant is pinned, or its frames are donated to a space.
pub fn delete(cap: &'static Cap, budget: &mut u32) -> Result<(), Error> {
    revoke(cap, budget)?;
    delete_leaf(cap, budget)
}

fn delete_leaf(cap: &'static Cap, budget: &mut u32) -> Result<(), Error> {
    let trace = &cpu::this().trace;
    if trace.is_ring(cap) {
        trace.stop();
    }
    if cap.flags.get() & PINNED != 0 {
        return Err(Error::Busy);
    }
    *budget = budget.checked_sub(1).ok_or(Error::Restart)?;
    let kind = cap.kind();
    if kind == ObjectType::Frames as u8 {
        if frames::is_mapped(cap) {
            let mut progress = 0;
            while let Some(done) = frames::unmap(cap, progress)? {
                progress = done;
                *budget = budget.checked_sub(1).ok_or(Error::Restart)?;
            }
        }
    } else if kind == ObjectType::IoPorts as u8 {
        disable_ports(cap);
    } else if kind == ObjectType::Irq as u8 {
        for line in cap.base.get()..cap.base.get() + u64::from(cap.count.get()) {
            irq::bind(line, None);
        }
    } else if cap.has(OWNED) {
        destroy(cap, budget)?;
        if let Some(parent) = cap.parent() {
            parent.clear(DONATED);
        }
    }
    cap.remove();
    Ok(())
}

/// Takes a port range out of the domain in which it is enabled.
pub fn disable_ports(cap: &Cap) {
    if SpaceRef::find(cap.space.get()).is_some() {
        from_address::<Domain>(cap.aux.get()).ports.disable(cap);
        crate::arch::ports_changed();
    }
    cap.space.set(0);
}

fn destroy(cap: &'static Cap, budget: &mut u32) -> Result<(), Error> {
    let address = cap.base.get();
    match ObjectType::try_from(u64::from(cap.kind())) {
        Ok(ObjectType::Event) => destroy_event(from_address(address)),
        Ok(ObjectType::Thread) => {
            let thread: &'static Thread = from_address(address);
            stop(thread);
            thread.unregister();
        }
        Ok(ObjectType::Vcpu) => {
            let vcpu: &'static Vcpu = from_address(address);
            if let Some(runner) = vcpu.runner.get() {
                cpu::fail_vcpu_run(runner);
            }
            vcpu.dissolve();
        }
        Ok(ObjectType::Vm) => {
            let vm: &'static Vm = from_address(address);
            while let Some(vcpu) = vm.vcpus.get() {
                if let Some(runner) = vcpu.runner.get() {
                    cpu::fail_vcpu_run(runner);
                }
                vm.vcpus.set(vcpu.next.take());
                vcpu.vm.set(None);
            }
            vm.space.dissolve();
        }
        Ok(ObjectType::Domain) => destroy_domain(from_address(address), budget)?,
        _ => {}
    }
    Ok(())
}

fn destroy_event(event: &'static Event) {
    cpu::this().timers.cancel(event);
    irq::forget(event);
    Thread::forget_fault_event(event);
    if let Some(thread) = event.dissolve() {
        cpu::fail_wait(thread);
    }
}

/// Stops a domain's threads, then deletes what its table holds, then its address space.
fn destroy_domain(domain: &'static Domain, budget: &mut u32) -> Result<(), Error> {
    let mut next = domain.threads.get();
    while let Some(thread) = next {
        next = thread.following();
        stop(thread);
        if let Some(cap) = thread.header().cap.get() {
            delete(cap, budget)?;
        }
    }
    for cap in domain.slots() {
        if !cap.is_empty() {
            delete(cap, budget)?;
        }
    }
    domain.space.dissolve();
    // A range that another table's capability enabled goes with the domain.
    if !domain.ports.is_empty() {
        crate::arch::ports_changed();
    }
    Ok(())
}

/// Stops a thread wherever it is.
pub fn stop(thread: &'static Thread) {
    thread.leave_objects();
    cpu::this().queue.remove(thread);
    thread.state.set(ThreadState::Stopped);
}

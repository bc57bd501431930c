//! What services say of themselves, and what is done about a domain that faulted.
//!
//! A fault is reported with everything that its finder needs, the domain's peers are told to let go of
//! its channels, and the toolstack hears of a guest that died. Everything that was wired to a service is
//! recorded, so that it can be built again from its image.

use alloc::format;
use alloc::string::String;

use proto::abi::{Field, NO_FAULT, ThreadState};
use proto::builder;
use proto::supervise::Response;
use proto::text::Text;

use crate::domain::{Kind, ServiceState};
use crate::kernel::Kernel;
use crate::pci::ConfigSpace;
use crate::system::{ROOT, System};

/// General registers, by name.
const REGISTERS: [(&str, Field); 15] = [
    ("rax", Field::Rax),
    ("rbx", Field::Rbx),
    ("rcx", Field::Rcx),
    ("rdx", Field::Rdx),
    ("rsi", Field::Rsi),
    ("rdi", Field::Rdi),
    ("rbp", Field::Rbp),
    ("r8", Field::R8),
    ("r9", Field::R9),
    ("r10", Field::R10),
    ("r11", Field::R11),
    ("r12", Field::R12),
    ("r13", Field::R13),
    ("r14", Field::R14),
    ("r15", Field::R15),
];

/// Names of the exceptions that a ring-3 thread can cause (APM vol. 2, 8.2).
fn exception(vector: u64) -> &'static str {
    match vector {
        0 => "divide error",
        1 => "debug exception",
        3 => "breakpoint",
        6 => "invalid opcode",
        7 => "use of vector or floating-point registers",
        13 => "general protection fault",
        14 => "page fault",
        17 => "alignment check",
        _ => "exception",
    }
}

impl<K: Kernel, C: ConfigSpace> System<K, C> {
    /// A domain said something on its supervise channel.
    pub fn on_supervise(&mut self, from: u32, response: Response) {
        match response {
            Response::Ready => self.on_ready(from),
            Response::Attached { id } => self.on_attached(from, id),
            Response::Refused { id, reason } => self.on_refused(from, id, &reason),
            Response::Detached { id } => self.on_detached(from, id),
            Response::Pong { .. } => {}
            Response::Failed { reason } => {
                let reason = format!("start-up failed: {reason}");
                self.on_death(from, &reason);
            }
        }
    }

    fn on_ready(&mut self, from: u32) {
        let Some(domain) = self.domains.get_mut(&from) else { return };
        let Kind::Service(index, ServiceState::Started) = domain.kind else { return };
        domain.kind = Kind::Service(index, ServiceState::Ready);
        log::info!("{} is ready (domain {from}, {} KiB)", domain.name, domain.frames() * 4);
        self.start_services();
        let is_ready =
            |kind: &Kind| !matches!(kind, Kind::Service(_, state) if *state != ServiceState::Ready);
        if self.system_frames == 0 && self.domains.values().all(|domain| is_ready(&domain.kind)) {
            self.system_frames = self.given_frames - self.resources.free.free() + self.kernel_frames;
            let (system, free) = (self.system_frames * 4, self.resources.free.free() * 4);
            log::info!("all services are ready; the system has {system} KiB, {free} KiB are free for guests");
        }
    }

    /// Some thread faulted: finds out whose.
    pub fn on_fault(&mut self) {
        let mut dead = alloc::vec::Vec::new();
        for domain in self.domains.values() {
            let is_known = match domain.kind {
                Kind::Root => true,
                Kind::Service(_, state) => state == ServiceState::Dead,
                Kind::Guest { is_dead, .. } => is_dead,
            };
            let state = self.resources.kernel.cap_read(domain.thread, Field::ThreadState);
            if !is_known && state == Ok(ThreadState::Faulted as u64) {
                dead.push(domain.domid);
            }
        }
        for domid in dead {
            let reason = self.report(domid);
            self.on_death(domid, &reason);
        }
    }

    /// Writes a thread's registers to the log; the fault in a sentence.
    fn report(&mut self, domid: u32) -> String {
        let Some(domain) = self.domains.get(&domid) else { return String::new() };
        let (thread, kernel) = (domain.thread, &mut self.resources.kernel);
        let mut read = |field| kernel.cap_read(thread, field).unwrap_or(0);
        let vector = read(Field::FaultVector);
        let (code, address) = (read(Field::FaultCode), read(Field::FaultAddress));
        let (rip, rsp, flags) = (read(Field::Rip), read(Field::Rsp), read(Field::Rflags));
        let what = if vector == NO_FAULT { "no exception" } else { exception(vector) };
        let sentence = format!(
            "{what} (vector {vector}, code {code:#x}, address {address:#x}) at rip {rip:#x}, rsp {rsp:#x}"
        );
        log::error!("{}: {sentence}, rflags {flags:#x}", domain.name);
        for row in REGISTERS.chunks(4) {
            let mut line = String::new();
            for (name, field) in row {
                line += &format!(" {name}={:#018x}", read(*field));
            }
            log::error!("{}:{line}", domain.name);
        }
        sentence
    }

    /// A domain runs no more.
    fn on_death(&mut self, domid: u32, reason: &str) {
        let Some(domain) = self.domains.get_mut(&domid) else { return };
        log::error!("{} (domain {domid}) is dead: {reason}", domain.name);
        match &mut domain.kind {
            Kind::Root => return,
            Kind::Service(_, state) => *state = ServiceState::Dead,
            Kind::Guest { is_dead, .. } => {
                if core::mem::replace(is_dead, true) {
                    return;
                }
                if self.fail_build(domid, reason) {
                    return;
                }
                self.answer(builder::Response::Died { domid, reason: Text::truncated(reason) });
            }
        }
        if domid != ROOT {
            self.close_channels(domid);
        }
    }
}

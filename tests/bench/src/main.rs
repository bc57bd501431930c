//! The bench domain: measures the kernel's paths from ring 3 and logs one line per figure.
//!
//! The same program runs in several roles (option `role`): `low` takes the samples, `peer` of the same
//! priority answers it, `high` is the waiter or driver that is more important, `device` lets a UART
//! interrupt, `store` asks the store. Without a role it stands in for the VMM: it enters a guest of two
//! instructions and does nothing with its exits but to step over them. With the option `after-ms` the samples
//! are taken that long after the start, when guests are idle.
//! Figures are kernel instructions: the user's and the guest's own, which stand beside each measuring
//! sequence, are subtracted.
#![no_std]
#![no_main]

extern crate alloc;

mod events;
mod exits;
mod stamps;
mod store;

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use bench::{SAMPLES, mode};
use proto::abi::SystemField;
use rt::supervise::Supervisor;

rt::entry!(main);

fn main(env: rt::Env) -> ! {
    match env.option("role") {
        Some("low") => events::low(&env),
        Some("device") => events::device(&env),
        Some("peer") => events::peer(&env),
        Some("high") => events::high(&env),
        Some("store") => store::client(&env),
        _ => exits::vmm(&env),
    }
}

/// Tells init that the domain is up.
fn ready(env: &rt::Env) -> Supervisor {
    let mut supervisor = Supervisor::new(env);
    supervisor.ready();
    supervisor.flush();
    supervisor
}

/// Waits as long as the option `after-ms` says.
fn delay(env: &rt::Env) {
    let Some(milliseconds) = env.option("after-ms").and_then(|value| value.parse::<u64>().ok()) else {
        return;
    };
    let signals = env.info.timer_signals;
    let deadline = rt::time::tsc() + milliseconds * env.info.tsc_khz;
    if rt::sys::event_timer(env.info.event, deadline, signals).is_ok() {
        events::wait_for(env.info.event, signals);
    }
}

/// Takes samples and logs the figure; `own` is what of each sample is not the kernel's. A kernel that counts
/// expensive instructions also says how many of each kind the samples took.
fn figure(name: &str, own: u64, mut sample: impl FnMut() -> u64) {
    let mut samples = [0; SAMPLES];
    let before = expensive();
    for place in &mut samples {
        *place = sample().wrapping_sub(own);
    }
    let after = expensive();
    let (value, times) = mode(&samples);
    log::info!("figure {name} {value} {times}");
    if let Some((before, after)) = before.zip(after) {
        // What reading the counters takes itself: the same with no samples between.
        let readings = expensive().zip(expensive());
        let counts: Vec<String> = (0..EXPENSIVE.len())
            .map(|kind| {
                let grown = |(before, after): (Counts, Counts)| after[kind].wrapping_sub(before[kind]);
                let own = readings.map_or(0, grown);
                format!("{}", grown((before, after)).saturating_sub(own))
            })
            .collect();
        log::info!("counts {name} {SAMPLES} {}", counts.join(" "));
    }
}

/// What a kernel built with `count-instructions` counts.
const EXPENSIVE: [SystemField; 10] = [
    SystemField::Cr3Writes,
    SystemField::MsrWrites,
    SystemField::VmSaveLoads,
    SystemField::XcrWrites,
    SystemField::Irets,
    SystemField::Sysrets,
    SystemField::Swapgs,
    SystemField::Vmruns,
    SystemField::ApicAccesses,
    SystemField::Invlpg,
];

/// Values of [`EXPENSIVE`].
type Counts = [u64; EXPENSIVE.len()];

/// The counters, if the kernel has them.
fn expensive() -> Option<Counts> {
    let mut counts = [0; EXPENSIVE.len()];
    for (count, field) in counts.iter_mut().zip(EXPENSIVE) {
        *count = rt::sys::system_info(field).ok()?;
    }
    Some(counts)
}

/// Nothing is left to do: stays, and answers init.
fn finish(env: &rt::Env, mut supervisor: Supervisor) -> ! {
    log::info!("figures done");
    loop {
        while supervisor.next().is_some() {}
        supervisor.flush();
        if supervisor.prepare_sleep() {
            let _signals = rt::sys::event_wait(env.info.event);
        }
    }
}

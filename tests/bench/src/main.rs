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

use bench::{SAMPLES, mode};
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

/// Takes samples and logs the figure; `own` is what of each sample is not the kernel's.
fn figure(name: &str, own: u64, mut sample: impl FnMut() -> u64) {
    let mut samples = [0; SAMPLES];
    for place in &mut samples {
        *place = sample().wrapping_sub(own);
    }
    let (value, times) = mode(&samples);
    log::info!("figure {name} {value} {times}");
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

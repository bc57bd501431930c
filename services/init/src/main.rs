//! Init's binary: takes over what the kernel hands out, builds the services, then carries messages between
//! them and the logic in the library, for ever.
#![no_std]
#![no_main]

extern crate alloc;

mod bare;

use alloc::string::String;

use init::clock;
use init::power::{self, End};
use init::system::{Start, System};
use log::LevelFilter;
use proto::abi::init_slots;
use proto::boot::{BUNDLE_BASE, INIT_MAGIC, InitInfo};
use proto::channel::Region;

use bare::carrier::Carrier;
use bare::machine::{Clock, ConfigPorts, SystemCalls};

rt::root_entry!(main);

fn main(info: &'static InitInfo) -> ! {
    rt::logger::to_serial(init_slots::LOG, LevelFilter::Error, LevelFilter::Info);
    let command_line = info.cmdline.get(..info.cmdline_len as usize).unwrap_or(&[]);
    let command_line = core::str::from_utf8(command_line).unwrap_or("");
    match start(info, command_line) {
        Ok(system) => Carrier::new(system, command_line).run(),
        Err(why) => {
            log::error!("the system cannot start: {why}");
            bare::machine::end(power::end(command_line, 1))
        }
    }
}

/// Everything up to the services that wait for nobody.
#[inline(never)]
fn start(info: &'static InitInfo, command_line: &str) -> Result<System<SystemCalls, ConfigPorts>, String> {
    if info.magic != INIT_MAGIC {
        return Err("the kernel's start information is not init's".into());
    }
    let runs = info.runs.get(..info.run_count as usize).ok_or("the kernel lists too many frame runs")?;
    let start = Start {
        runs,
        bundle: rt::memory::bytes(Region { addr: BUNDLE_BASE, len: info.bundle_len }),
        tsc_khz: info.tsc_khz,
        boot_tsc: info.boot_tsc,
        kernel_frames: info.kernel_frames,
    };
    let mut system = System::new(SystemCalls, ConfigPorts, &start)?;
    for (first, count) in [bare::machine::CMOS_PORTS, bare::machine::CONFIG_PORTS] {
        system.resources.enable_ports(first, count).map_err(|error| alloc::format!("{error}"))?;
    }
    if matches!(power::end(command_line, 0), End::DebugExit(_)) {
        let ports = system.resources.enable_ports(power::DEBUG_EXIT_PORT, 1);
        ports.map_err(|error| alloc::format!("{error}"))?;
    }
    system.wall_clock_base_ns = wall_clock(info.tsc_khz);
    system.build_services()?;
    Ok(system)
}

/// Nanoseconds since 1970 when the TSC was 0.
fn wall_clock(tsc_khz: u64) -> u64 {
    let Some(seconds) = clock::read(&mut Clock).unix_seconds() else {
        log::warn!("the real-time clock holds no date: guests begin in 1970");
        return 0;
    };
    let since_start = rt::time::Clock::new(tsc_khz).now_ns();
    (seconds * 1_000_000_000).saturating_sub(since_start)
}

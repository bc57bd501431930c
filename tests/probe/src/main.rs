//! The probe of the standard guest: measures from inside what a hypervisor charges for.
//!
//! It is linked statically, because the guest's initial RAM disk has no libraries; `qemu-runner` builds it
//! (`qemu-runner/src/guest/probe.rs`) and reads its lines. Times are CLOCK_MONOTONIC and the TSC; under
//! `-icount shift=0` both count executed instructions, of guest and hypervisor alike. Each measurement is
//! done as `probe.c` did it in the peers' guests, so that the figures stand beside theirs: the same number
//! of samples, the same median, the same system calls.
//!
//! Output is a line per figure: `probe: NAME key=value ...`, see [`figure`].

mod blk;
mod clock;
mod cpu;
mod exits;
mod figure;
mod latency;
mod net;

use std::process::ExitCode;

/// What goes wrong ends the program with a sentence; the runner shows the guest's console.
type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const USAGE: &str = "probe now\n\
    probe exits [SAMPLES]\n\
    probe cpu\n\
    probe latency DEVICE\n\
    probe blk DEVICE read|write|randread|randwrite BLOCK-SIZE TOTAL-BYTES QUEUE-DEPTH\n\
    probe net ADDRESS:PORT rr|tx|rx COUNT";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match run(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("probe {}: {error}", words.join(" "));
            ExitCode::FAILURE
        }
    }
}

fn run(words: &[&str]) -> Result<()> {
    match *words {
        ["now"] => figure::print("now", &[("monotonic", clock::now()), ("tsc", clock::tsc())]),
        ["exits"] => exits::measure(exits::SAMPLES)?,
        ["exits", samples] => exits::measure(samples.parse()?)?,
        ["cpu"] => cpu::measure()?,
        ["latency", disk] => latency::measure(disk)?,
        ["blk", device, pattern, block, total, depth] => {
            let plan = blk::Plan::new(pattern, block.parse()?, total.parse()?, depth.parse()?)?;
            blk::measure(device, &plan)?;
        }
        ["net", server, mode, count] => net::measure(server, net::Mode::new(mode)?, count.parse()?)?,
        _ => return Err(format!("what to measure? One of:\n{USAGE}").into()),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_that_make_no_sense_are_refused() {
        for words in [&[][..], &["blk"], &["exits", "many"], &["blk", "/dev/null", "look", "1", "1", "1"]] {
            assert!(run(words).is_err(), "{words:?}");
        }
    }
}

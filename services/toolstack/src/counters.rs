//! `xl counters`: every counter with its name, as text and as JSON.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;

use proto::builder::Activity;
use proto::counters::{COUNT, Name};

use crate::sample::Domain;

/// What the kernel counted, by name.
fn kernel(activity: &Activity) -> [(&'static str, u64); 7] {
    [
        ("cpu_time_ns", activity.time_ns),
        ("dispatches", activity.dispatches),
        ("signals_sent", activity.signals_sent),
        ("wake_ups", activity.wake_ups),
        ("interrupts", activity.interrupts),
        ("vcpu_exits", activity.vcpu_exits),
        ("vcpu_kernel_exits", activity.vcpu_kernel_exits),
    ]
}

/// A domain's own counters that are not 0, with their names.
fn own(domain: &Domain) -> impl Iterator<Item = (Name, u64)> {
    (0..COUNT).filter_map(|index| Some((Name::of(index)?, domain.counter(index)))).filter(|(_, n)| *n != 0)
}

/// A table: what the kernel counted first, then what the domain counted itself; what is 0 is left out.
pub(crate) fn table<'a>(domains: impl IntoIterator<Item = &'a Domain>) -> String {
    let mut text = format!("{:<32} {:>5}  {:<34} {:>20}\n", "Name", "ID", "Counter", "Value");
    for domain in domains {
        let stat = &domain.stat;
        let mut row = |counter: String, value: u64| {
            // Writing to a string cannot fail.
            let _ok =
                writeln!(text, "{:<32} {:>5}  {counter:<34} {value:>20}", stat.name.as_str(), stat.domid);
        };
        let counted = kernel(&stat.activity).into_iter().filter(|(_, value)| *value != 0);
        counted.for_each(|(name, value)| row(format!("kernel.{name}"), value));
        own(domain).for_each(|(name, value)| row(format!("{name}"), value));
    }
    text
}

/// JSON: a list of domains. `kernel` is what the kernel counted, `counters` what the domain counted itself; one
/// that is not there is 0.
pub(crate) fn json<'a>(domains: impl IntoIterator<Item = &'a Domain>) -> String {
    let rows: Vec<String> = domains
        .into_iter()
        .map(|domain| {
            let stat = &domain.stat;
            let kernel: Vec<String> =
                kernel(&stat.activity).iter().map(|(name, value)| format!("\"{name}\": {value}")).collect();
            let own: Vec<String> = own(domain).map(|(name, value)| format!("\"{name}\": {value}")).collect();
            format!(
                "{{\"domid\": {}, \"name\": \"{}\", \"is_guest\": {}, \"thread\": {}, \"kernel\": {{{}}}, \
                 \"counters\": {{{}}}}}",
                stat.domid,
                stat.name.escape_default(),
                stat.is_guest,
                stat.activity.thread,
                kernel.join(", "),
                own.join(", "),
            )
        })
        .collect();
    format!("[\n    {}\n]\n", rows.join(",\n    "))
}

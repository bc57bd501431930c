//! The capability graph of a manifest, as Graphviz text.
//!
//! Boxes are domains, ellipses what the machine has; an edge is a capability or a channel. What is made
//! with each guest hangs off one VMM box.

use core::fmt::Write as _;

use crate::manifest::Manifest;
use crate::programs::{INIT, VMM};

/// Draws the graph. The same manifest always gives the same text.
pub fn dot(manifest: &Manifest) -> String {
    let mut lines = vec![
        format!("\"{INIT}\" [shape=box, style=bold]"),
        format!("\"{VMM}\" [shape=box, style=dashed, label=\"vmm\\n(one per guest)\"]"),
        "\"guest\" [shape=box3d, style=dashed]".to_owned(),
        format!("\"{VMM}\" -> \"guest\" [label=\"memory, Vm, Vcpus\"]"),
        format!("\"{INIT}\" -> \"{VMM}\" [style=dotted, label=\"supervise\"]"),
        "\"pci configuration space\" [shape=ellipse]".to_owned(),
        format!("\"{INIT}\" -> \"pci configuration space\""),
    ];
    let has = |name: &str| manifest.services.iter().any(|s| s.name.get_ref() == name);
    for service in &manifest.services {
        let name = service.name.get_ref();
        let (priority, heap) = (service.priority.get_ref(), service.heap_kib.get_ref());
        lines
            .push(format!("\"{name}\" [shape=box, label=\"{name}\\npriority {priority}, heap {heap} KiB\"]"));
        lines.push(format!("\"{INIT}\" -> \"{name}\" [style=dotted, label=\"supervise\"]"));
        let mut holds = |what: String| {
            lines.push(format!("\"{what}\" [shape=ellipse]"));
            lines.push(format!("\"{name}\" -> \"{what}\""));
        };
        for ports in &service.ports {
            let (first, count) = (ports.get_ref().first, ports.get_ref().count);
            holds(format!("ports {first:#x}..{:#x}", first + count));
        }
        for line in &service.lines {
            holds(format!("interrupt line {}", line.get_ref()));
        }
        for device in &service.devices {
            let device = device.get_ref();
            let ids: Vec<_> = device.devices.iter().map(|id| format!("{id:04x}")).collect();
            holds(format!("pci {:04x}:{}", device.vendor, ids.join("|")));
        }
        if let Some(file) = &service.file {
            holds(format!("file {}", file.get_ref()));
        }
        for kind in &service.serves {
            let kind = kind.get_ref();
            lines.push(format!("\"{VMM}\" -> \"{name}\" [style=dashed, label=\"{kind}\"]"));
        }
    }
    for channel in &manifest.channels {
        let (client, server) = (channel.client.get_ref(), channel.server.get_ref());
        let target = channel.target.as_ref().map(|t| format!(" ({})", t.get_ref())).unwrap_or_default();
        lines.push(format!("\"{client}\" -> \"{server}\" [label=\"{}{target}\"]", channel.kind.get_ref()));
    }
    if has("toolstack") {
        lines.push(format!("\"toolstack\" -> \"{VMM}\" [style=dashed, label=\"guest\"]"));
    }
    let mut out = String::from("digraph system {\n    rankdir=LR;\n");
    for line in lines {
        // Writing to a String cannot fail.
        let _ = writeln!(out, "    {line};");
    }
    out.push_str("}\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::{DEFAULT, load};
    use crate::programs::of_workspace;

    #[test]
    fn every_capability_of_the_manifest_is_an_edge() {
        let text = dot(&load("m", DEFAULT, &of_workspace()).unwrap());
        for edge in [
            "\"console\" -> \"ports 0x3f8..0x400\"",
            "\"console\" -> \"interrupt line 4\"",
            "\"blkback\" -> \"pci 1af4:1042|1001\"",
            "\"netback\" -> \"pci 1af4:1041|1000\"",
            "\"toolstack\" -> \"file guests\"",
            "\"console\" -> \"toolstack\" [label=\"operator\"]",
            "\"toolstack\" -> \"xenstore\" [label=\"xenstore (privileged)\"]",
            "\"toolstack\" -> \"init\" [label=\"builder\"]",
            "\"vmm\" -> \"blkback\" [style=dashed, label=\"blk\"]",
            "\"vmm\" -> \"console\" [style=dashed, label=\"log\"]",
        ] {
            assert!(text.contains(edge), "{edge} in\n{text}");
        }
        assert!(!text.contains("\"xenstore\" -> \"ports"));
        assert_eq!(text.matches('{').count(), text.matches('}').count());
    }
}

//! A guest's configuration as an xl.cfg file again.

use core::fmt::{self, Write};

use proto::cpuid::Narrowing;

use super::cpuid;
use super::guest::GuestConfig;

impl fmt::Display for GuestConfig {
    /// Prints a file that reads as the same configuration.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "name = {}", Quoted(&self.name.value))?;
        writeln!(f, "uuid = \"{}\"", Uuid(&self.uuid))?;
        writeln!(f, "type = \"pvh\"")?;
        writeln!(f, "kernel = {}", Quoted(&self.kernel.value))?;
        if let Some(ramdisk) = &self.ramdisk {
            writeln!(f, "ramdisk = {}", Quoted(&ramdisk.value))?;
        }
        writeln!(f, "cmdline = {}", Quoted(&self.cmdline.value))?;
        writeln!(f, "memory = {}", self.memory_kib.value / 1024)?;
        writeln!(f, "vcpus = {}", self.vcpus)?;
        if self.cpuid != Narrowing::default() {
            writeln!(f, "cpuid = {}", Quoted(&cpuid::text(&self.cpuid)))?;
        }
        writeln!(f, "disk = [")?;
        for disk in &self.disks {
            let access = if disk.is_read_only { "ro" } else { "rw" };
            let trust = if disk.is_trusted { "" } else { "untrusted, " };
            let (vdev, target) = (&disk.vdev.value, &disk.target.value);
            if disk.memory > 0 {
                writeln!(f, "    {},", Quoted(&alloc::format!("{trust}ram:{target},{vdev},{access}")))?;
                continue;
            }
            // One comma at the end of a target is taken for a separator.
            let end = if target.ends_with(',') { "," } else { "" };
            let spec =
                alloc::format!("format=raw, vdev={vdev}, access={access}, {trust}target={target}{end}");
            writeln!(f, "    {},", Quoted(&spec))?;
        }
        writeln!(f, "]")?;
        writeln!(f, "vif = [")?;
        for vif in &self.vifs {
            let trust = if vif.is_trusted { "" } else { ",untrusted" };
            let spec = alloc::format!("mac={},bridge={}{trust}", Mac(&vif.mac.value), vif.bridge.value);
            writeln!(f, "    {},", Quoted(&spec))?;
        }
        writeln!(f, "]")?;
        writeln!(f, "on_poweroff = \"{}\"", self.on_poweroff)?;
        writeln!(f, "on_reboot = \"{}\"", self.on_reboot)?;
        writeln!(f, "on_watchdog = \"{}\"", self.on_watchdog)?;
        writeln!(f, "on_crash = \"{}\"", self.on_crash)
    }
}

/// Text in quotes, escaped.
struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('"')?;
        for c in self.0.chars() {
            match c {
                '"' | '\\' => write!(f, "\\{c}")?,
                '\n' => f.write_str("\\n")?,
                '\r' => f.write_str("\\r")?,
                '\t' => f.write_str("\\t")?,
                c if c.is_ascii_control() => write!(f, "\\x{:02x}", u32::from(c))?,
                c => f.write_char(c)?,
            }
        }
        f.write_char('"')
    }
}

/// A UUID with its hyphens.
#[derive(Debug, Clone, Copy)]
pub struct Uuid<'a>(pub &'a [u8; 16]);

impl fmt::Display for Uuid<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            if matches!(index, 4 | 6 | 8 | 10) {
                f.write_char('-')?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

/// A MAC address with its colons.
#[derive(Debug, Clone, Copy)]
pub struct Mac<'a>(pub &'a [u8; 6]);

impl fmt::Display for Mac<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            let colon = if index == 0 { "" } else { ":" };
            write!(f, "{colon}{byte:02x}")?;
        }
        Ok(())
    }
}

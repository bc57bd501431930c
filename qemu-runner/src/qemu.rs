//! The QEMU command line, in one place, with the reason for each part.

use std::path::PathBuf;
use std::process::Command;

use crate::accel::Accel;

/// Memory of the machine in MiB when nothing else is asked for.
pub const DEFAULT_MEMORY_MIB: u64 = 2048;
/// Port of the debug-exit device: init writes the machine's exit status there when the command line says so.
const DEBUG_EXIT_PORT: u16 = 0xf4;

/// A disk image of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drive {
    /// Absolute path.
    pub path: PathBuf,
    /// Serial number of its virtio-blk function: the volume's name in the system.
    pub volume: String,
    /// No guest may write to it.
    pub is_read_only: bool,
}

/// The network outside.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Net {
    /// QEMU's user network: 10.0.2.0/24 with DHCP; the host is 10.0.2.2.
    #[default]
    User,
    /// No NIC.
    None,
}

/// What the serial port is connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Serial {
    /// The user's terminal; Ctrl-A x ends QEMU.
    Terminal,
    /// Our pipes.
    Pipe,
}

/// A machine to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The QEMU program.
    pub program: PathBuf,
    /// The kernel's ELF file.
    pub kernel: PathBuf,
    /// The boot bundle.
    pub bundle: PathBuf,
    /// A CD image that the firmware boots, in place of kernel and bundle.
    pub cdrom: Option<PathBuf>,
    /// Accelerator.
    pub accel: Accel,
    /// Deterministic: one instruction is one nanosecond.
    pub has_icount: bool,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// CPUs.
    pub smp: u32,
    /// Disks.
    pub drives: Vec<Drive>,
    /// Network.
    pub net: Net,
    /// Port forwardings of the user network, as QEMU writes them.
    pub hostfwd: Vec<String>,
    /// Serial port.
    pub serial: Serial,
    /// Further arguments.
    pub extra: Vec<String>,
}

impl Config {
    /// The arguments.
    pub fn arguments(&self) -> Vec<String> {
        let mut args: Vec<String> = Vec::new();
        let mut add = |words: &[&str]| args.extend(words.iter().map(|w| (*w).to_owned()));
        // No device but the ones named here, no configuration of the user's.
        add(&["-nodefaults", "-no-user-config", "-display", "none"]);
        // PCIe with ECAM, and an I/O APIC as on real boards.
        add(&["-machine", "q35"]);
        match (self.accel, self.smp) {
            (Accel::Tcg, 1) => add(&["-accel", "tcg"]),
            (Accel::Tcg, _) if self.has_icount => add(&["-accel", "tcg,thread=single"]),
            (Accel::Tcg, _) => add(&["-accel", "tcg,thread=multi"]),
            (Accel::Kvm, _) => add(&["-accel", "kvm"]),
        }
        match self.accel {
            // An AMD processor with SVM and nested paging, which no named model has by default under
            // emulation; MONITOR is left out because its emulation faults where hardware does not.
            Accel::Tcg => add(&["-cpu", "EPYC,+svm,+npt,-monitor"]),
            Accel::Kvm => add(&["-cpu", "host,+svm,+npt"]),
        }
        if self.has_icount {
            // Virtual time is the count of instructions; idle time is skipped.
            add(&["-icount", "shift=0,sleep=off"]);
        }
        add(&["-m", &self.memory_mib.to_string(), "-smp", &self.smp.to_string()]);
        // A triple fault ends the run instead of starting it again, and so does a reset.
        add(&["-no-reboot"]);
        match &self.cdrom {
            Some(image) => add(&["-cdrom", &image.display().to_string()]),
            // The kernel has a PVH entry: QEMU loads it as it is, and the bundle as its module.
            None => {
                let (kernel, bundle) = (self.kernel.display().to_string(), self.bundle.display().to_string());
                add(&["-kernel", &kernel, "-initrd", &bundle, "-append", "debug-exit"]);
            }
        }
        // A status for whoever started the machine: see `Exit::of_code`.
        add(&["-device", &format!("isa-debug-exit,iobase={DEBUG_EXIT_PORT:#x},iosize=4")]);
        match self.serial {
            // The monitor shares the terminal (Ctrl-A c), Ctrl-C goes to the guest, Ctrl-A x ends QEMU.
            Serial::Terminal => add(&["-serial", "mon:stdio"]),
            Serial::Pipe => add(&["-chardev", "stdio,id=com1,signal=off", "-serial", "chardev:com1"]),
        }
        for drive in &self.drives {
            let Drive { path, volume, is_read_only } = drive;
            // Commas in an option's value are doubled.
            let path = path.display().to_string().replace(',', ",,");
            let read_only = if *is_read_only { ",readonly=on" } else { "" };
            add(&[
                "-drive",
                &format!("if=none,id={volume},format=raw,cache=writeback,file={path}{read_only}"),
            ]);
            // virtio 1.0 only; one queue, because the driver domain has one thread.
            add(&[
                "-device",
                &format!("virtio-blk-pci,drive={volume},serial={volume},disable-legacy=on,num-queues=1"),
            ]);
        }
        if self.net == Net::User {
            let forwards: String = self.hostfwd.iter().map(|f| format!(",hostfwd={f}")).collect();
            add(&["-netdev", &format!("user,id=net0{forwards}")]);
            // No option ROM: nothing boots from it, and it costs start-up time.
            add(&["-device", "virtio-net-pci,netdev=net0,disable-legacy=on,romfile="]);
        }
        args.extend(self.extra.iter().cloned());
        args
    }

    /// The command. Where util-linux's `setpriv` is there, the machine dies with its runner.
    pub fn command(&self) -> Command {
        let mut command = match image_builder::toolchain::find_program("setpriv") {
            Some(setpriv) => {
                let mut command = Command::new(setpriv);
                command.args(["--pdeathsig", "KILL", "--"]).arg(&self.program);
                command
            }
            None => Command::new(&self.program),
        };
        command.args(self.arguments());
        command
    }
}

/// How a machine ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// The system ended itself with this status.
    Status(u8),
    /// The kernel panicked.
    Panic,
    /// QEMU ended without the system's doing: quit, reset, triple fault.
    Ended,
    /// QEMU failed with this code, or was killed.
    Failed(Option<i32>),
}

impl Exit {
    /// From QEMU's exit code: the debug-exit device turns value `v` into `v << 1 | 1`.
    pub fn of_code(code: Option<i32>) -> Self {
        match code {
            Some(0) => Self::Ended,
            Some(0x7f) => Self::Panic,
            Some(code) if code & 1 == 1 && (0x10..0x3f).contains(&(code >> 1)) => {
                Self::Status(u8::try_from((code >> 1) - 0x10).unwrap_or(u8::MAX))
            }
            other => Self::Failed(other),
        }
    }
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Status(0) => f.write_str("the machine ended by itself"),
            Self::Status(status) => write!(f, "the machine ended by itself with status {status}"),
            Self::Panic => f.write_str("the kernel panicked"),
            Self::Ended => f.write_str("QEMU ended (a reset, a triple fault, or somebody ended it)"),
            Self::Failed(Some(code)) => write!(f, "QEMU failed with exit code {code}"),
            Self::Failed(None) => f.write_str("QEMU was killed"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        Config {
            program: "qemu-system-x86_64".into(),
            kernel: "/k".into(),
            bundle: "/b".into(),
            cdrom: None,
            accel: Accel::Tcg,
            has_icount: false,
            memory_mib: 2048,
            smp: 1,
            drives: vec![],
            net: Net::User,
            hostfwd: vec![],
            serial: Serial::Pipe,
            extra: vec![],
        }
    }

    #[test]
    fn disks_and_forwardings_reach_the_command_line() {
        let mut config = config();
        let drive = |path: &str, volume: &str, is_read_only| Drive {
            path: path.into(),
            volume: volume.into(),
            is_read_only,
        };
        config.drives = vec![drive("/a,b.img", "vol0", false), drive("/c.img", "vol1", true)];
        config.hostfwd = vec!["tcp::8080-:80".into()];
        config.extra = vec!["-d".into(), "int".into()];
        let line = config.arguments().join(" ");
        assert!(
            line.contains("-drive if=none,id=vol0,format=raw,cache=writeback,file=/a,,b.img -device"),
            "{line}"
        );
        assert!(line.contains("file=/c.img,readonly=on"), "{line}");
        assert!(
            line.contains("virtio-blk-pci,drive=vol1,serial=vol1,disable-legacy=on,num-queues=1"),
            "{line}"
        );
        assert!(line.contains("user,id=net0,hostfwd=tcp::8080-:80"), "{line}");
        assert!(line.ends_with("-d int"), "{line}");
        config.net = Net::None;
        assert!(!config.arguments().join(" ").contains("virtio-net"));
    }

    #[test]
    fn emulated_cpus_run_in_parallel_unless_counted() {
        let mut config = config();
        config.smp = 2;
        assert!(config.arguments().contains(&"tcg,thread=multi".to_owned()));
        config.has_icount = true;
        let args = config.arguments();
        assert!(
            args.contains(&"tcg,thread=single".to_owned()) && args.contains(&"shift=0,sleep=off".to_owned())
        );
    }

    #[test]
    fn exit_codes_are_told_apart() {
        assert_eq!(Exit::of_code(Some(33)), Exit::Status(0));
        assert_eq!(Exit::of_code(Some(35)), Exit::Status(1));
        assert_eq!(Exit::of_code(Some(0x7f)), Exit::Panic);
        assert_eq!(Exit::of_code(Some(0)), Exit::Ended);
        assert_eq!(Exit::of_code(Some(1)), Exit::Failed(Some(1)));
        assert_eq!(Exit::of_code(None), Exit::Failed(None));
    }
}

//! Kernel loading: from the file that the configuration names to a guest that can be entered.
//!
//! Kernel files come from users: every offset and length in them is checked, and what is wrong is said in
//! a sentence. [`extract_elf`] is also what a host tool calls, so that a guest's start does not pay for
//! decompression.

pub mod acpi;
pub mod bzimage;
pub mod image;
pub mod place;
pub mod room;

pub use bzimage::extract_elf;

use core::fmt;

use proto::guest::{HIGH_RAM_START, LOW_RAM_END};

/// Why a kernel cannot be loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LoadError {
    /// The file ends before the named part.
    Truncated(&'static str),
    /// The file contradicts itself, or its checksum does not match.
    Corrupt(&'static str),
    /// Neither ELF nor bzImage.
    UnknownFormat,
    /// The bzImage is older than boot protocol 2.08, which has no payload fields.
    OldBootProtocol(u16),
    /// The payload's compression is not supported (its name).
    Compression(&'static str),
    /// The unpacked kernel would be larger than allowed (its size, the limit).
    TooLarge(u64, u64),
    /// An ELF file for another processor or byte order.
    WrongMachine,
    /// No Xen PHYS32_ENTRY note: not a kernel with a PVH entry.
    NoPvhNote,
    /// The entry point lies in no segment.
    EntryOutside(u64),
    /// More loadable segments than this.
    TooManySegments(usize),
    /// A segment at this address lies where no guest ever has RAM.
    InHole(u64),
    /// Something does not fit the guest's RAM: what, and up to which address RAM would have to reach.
    DoesNotFit(&'static str, u64),
    /// Something must lie below an address, and with any amount of RAM there would be no room for it.
    NoRoom(&'static str, u64),
    /// The command line is longer than allowed (its length, the limit).
    CommandLine(usize, usize),
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated(part) => write!(f, "the kernel file is truncated: {part} is not complete"),
            Self::Corrupt(part) => write!(f, "the kernel file is corrupt: {part}"),
            Self::UnknownFormat => f.write_str(
                "the kernel file is neither an ELF file nor a bzImage; give what a distribution has as /boot/vmlinuz-*, \
                 or an unpacked vmlinux",
            ),
            Self::OldBootProtocol(version) => write!(
                f,
                "the bzImage has boot protocol {}.{:02}; 2.08 or newer is needed, which Linux has since 2.6.26",
                version >> 8,
                version & 0xff
            ),
            Self::Compression(name) => write!(
                f,
                "the kernel is compressed with {name}, which is not supported; xz, zstd, lz4 and gzip are: unpack it with \
                 Linux's scripts/extract-vmlinux and give the ELF file that comes out"
            ),
            Self::TooLarge(size, limit) => {
                write!(f, "the unpacked kernel has {size} bytes, {limit} are possible")
            }
            Self::WrongMachine => f.write_str("the kernel is not for little-endian x86"),
            Self::NoPvhNote => f.write_str(
                "the kernel has no PVH entry point (no ELF note Xen/PHYS32_ENTRY of 4 or 8 bytes); build Linux with \
                 CONFIG_PVH, or CONFIG_XEN_PVH before 4.21",
            ),
            Self::EntryOutside(entry) => {
                write!(f, "the kernel's PVH entry point {entry:#x} lies in none of its segments")
            }
            Self::TooManySegments(limit) => {
                write!(f, "the kernel has more than {limit} loadable segments; link it with fewer program headers")
            }
            Self::InHole(start) => write!(
                f,
                "the kernel's segment at {start:#x} reaches into {LOW_RAM_END:#x}..{HIGH_RAM_START:#x}, where no guest \
                 has RAM; link it for lower addresses"
            ),
            Self::DoesNotFit(what, end) => write!(
                f,
                "{what} does not fit the guest's memory: at least {} MiB are needed; set memory= to that or more",
                memory_up_to(*end).div_ceil(1 << 20)
            ),
            Self::NoRoom(what, limit) => write!(
                f,
                "there is no room for {what} below {} MiB, where it has to be, with any amount of memory; make it or \
                 the kernel smaller",
                limit >> 20
            ),
            Self::CommandLine(len, limit) => {
                write!(f, "the kernel command line has {len} bytes, {limit} are possible")
            }
        }
    }
}

impl core::error::Error for LoadError {}

/// How much RAM a guest has whose RAM reaches up to an address: there is a hole below 4 GiB.
fn memory_up_to(end: u64) -> u64 {
    if end > HIGH_RAM_START { end - (HIGH_RAM_START - LOW_RAM_END) } else { end }
}

//! How a domain starts and ends.
//!
//! Init maps the start information read-only and starts the thread with its address in `rdi`. The entry
//! point sets up heap and log and calls the domain's `main`, which never returns.
#![expect(unsafe_code, reason = "reads the start information at the address that init chose")]

use alloc::boxed::Box;
use core::mem::MaybeUninit;

use proto::abi::Slot;
use proto::boot::{DomainInfo, INFO_MAX, InitInfo};
use proto::channel::{ChannelInfo, ChannelKind, Region};
use proto::text::Text;
use serde::de::DeserializeOwned;
use spin::Once;

use crate::channel::Server;
use crate::{logger, sys};

/// What a domain is told at its start.
#[derive(Debug, Clone, Copy)]
pub struct Env {
    /// All of it.
    pub info: &'static DomainInfo,
}

impl Env {
    /// The channels of a kind.
    pub fn channels(&self, kind: ChannelKind) -> impl Iterator<Item = &'static ChannelInfo> {
        self.info.channels.iter().filter(move |channel| channel.kind == kind)
    }

    /// The first channel of a kind.
    pub fn channel(&self, kind: ChannelKind) -> Option<&'static ChannelInfo> {
        self.channels(kind).next()
    }

    /// The value of `key=value` among the options (separated by spaces); `Some("")` for a bare `key`.
    pub fn option(&self, key: &str) -> Option<&'static str> {
        option(&self.info.options, key)
    }
}

/// The value of `key=value` in a list separated by spaces; `Some("")` for a bare `key`.
pub fn option<'a>(options: &'a str, key: &str) -> Option<&'a str> {
    options.split_ascii_whitespace().find_map(|word| match word.split_once('=') {
        Some((name, value)) if name == key => Some(value),
        None if word == key => Some(""),
        _ => None,
    })
}

/// The first fields of [`DomainInfo`], up to the heap, which has to exist before the rest is decoded.
type Front = (u32, Text<32>, Slot, u64, Region);

/// Decodes the start information; `None` when init and this domain do not agree about it.
fn decode(bytes: &[u8]) -> Option<(Region, &[u8])> {
    let len = u32::from_le_bytes(*bytes.first_chunk()?);
    let body = bytes.get(4..4usize.checked_add(usize::try_from(len).ok()?)?)?;
    let (front, _) = postcard::take_from_bytes::<Front>(body).ok()?;
    Some((front.4, body))
}

/// Decodes one field to its place, so that no copy of it is ever larger than the field: all of
/// [`DomainInfo`] at once would take most of a small stack.
///
/// # Safety
/// `place` is valid for writes.
#[inline(never)]
unsafe fn decode_field<T: DeserializeOwned>(bytes: &mut &[u8], place: *mut T) -> Option<()> {
    let (value, rest) = postcard::take_from_bytes(bytes).ok()?;
    *bytes = rest;
    // SAFETY: the caller's promise.
    unsafe { place.write(value) };
    Some(())
}

macro_rules! decode_fields {
    ($bytes:ident, $info:ident: $($field:ident),*) => {{
        // Names every field, so that a new one cannot be forgotten here.
        let _complete = |info: DomainInfo| {
            let DomainInfo { $($field: _),* } = info;
        };
        // SAFETY: each field of the allocation is written once, in the order of its encoding.
        unsafe { $( decode_field($bytes, &raw mut (*$info).$field)?; )* }
    }};
}

/// Decodes the start information onto the heap; postcard encodes a structure as its fields in order.
fn decode_all(body: &[u8]) -> Option<&'static DomainInfo> {
    let place: &'static mut MaybeUninit<DomainInfo> = Box::leak(Box::new_uninit());
    let (bytes, info) = (&mut { body }, place.as_mut_ptr());
    decode_fields!(bytes, info: domid, name, event, timer_signals, heap, tsc_khz, wall_clock_base_ns, channels,
        devices, ports, lines, options, file, guest);
    // SAFETY: every field was written.
    Some(unsafe { place.assume_init_ref() })
}

/// The start information, for those who have no [`Env`] at hand.
static INFO: Once<&'static DomainInfo> = Once::new();

/// Sets up heap and log. Called by [`entry!`] alone.
#[doc(hidden)]
pub fn begin(info: u64) -> Env {
    // SAFETY: init maps at least one page here, as many as the length at its start says (checked against
    // `INFO_MAX`), read-only for the life of the domain.
    let bytes = unsafe {
        let len = u64::from((info as *const u32).read()).saturating_add(4).min(INFO_MAX);
        core::slice::from_raw_parts(info as *const u8, len as usize)
    };
    let Some((heap, body)) = decode(bytes) else { stop() };
    #[cfg(target_os = "none")]
    // SAFETY: init mapped it for this purpose alone; this runs once.
    unsafe {
        crate::heap::init(heap);
    }
    #[cfg(not(target_os = "none"))]
    let _: Region = heap;
    let Some(info) = decode_all(body) else { stop() };
    let env = Env { info: INFO.call_once(|| info) };
    // A domain whose console is broken runs without a log.
    let _silent = env.channel(ChannelKind::Log).map(|log| logger::to_channel(log, log_level(&env)));
    env
}

/// The most detailed level that the options ask for with `log=`; `info` if they do not.
fn log_level(env: &Env) -> log::LevelFilter {
    env.option("log").and_then(|level| level.parse().ok()).unwrap_or(log::LevelFilter::Info)
}

/// What the kernel tells init, and init's heap. Called by [`root_entry!`] alone.
#[doc(hidden)]
pub fn begin_root(info: u64) -> &'static InitInfo {
    #[cfg(target_os = "none")]
    // SAFETY: the kernel mapped it for this purpose alone; this runs once.
    unsafe {
        crate::heap::init(Region { addr: proto::boot::HEAP_BASE, len: proto::boot::INIT_HEAP });
    }
    // SAFETY: the kernel maps one page with this structure here, read-only, before it starts init.
    unsafe { &*(info as *const InitInfo) }
}

/// Start-up cannot go on: logs the reason, tells init, and waits to be taken down.
pub fn exit_failed(reason: &str) -> ! {
    log::error!("start-up failed: {reason}");
    if let Some(info) = INFO.get()
        && let Some(channel) = info.channels.iter().find(|channel| channel.kind == ChannelKind::Supervise)
        && let Ok(mut server) = Server::<proto::supervise::Supervise>::connect(channel)
    {
        let message = proto::supervise::Response::Failed { reason: Text::truncated(reason) };
        let _full = server.send(&message);
        server.flush();
        while sys::event_wait(info.event).is_ok() {}
    }
    stop()
}

/// Ends the thread by an invalid instruction, which its supervisor sees as a fault.
pub fn stop() -> ! {
    // SAFETY: an invalid instruction ends the thread and nothing else.
    unsafe { core::arch::asm!("ud2", options(noreturn, nomem, nostack)) }
}

#[cfg(target_os = "none")]
#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    log::error!("panic: {info}");
    stop()
}

/// Defines the entry point of a domain: `rt::entry!(main)` with `fn main(env: rt::Env) -> !`.
#[macro_export]
macro_rules! entry {
    ($main:path) => {
        $crate::entry_point!($crate::start::begin, $main);
    };
}

/// Defines the entry point of the root domain: `fn main(info: &'static InitInfo) -> !`.
#[macro_export]
macro_rules! root_entry {
    ($main:path) => {
        $crate::entry_point!($crate::start::begin_root, $main);
    };
}

/// The entry point itself: the stack pointer is 16-byte aligned and the address of the start information
/// is in `rdi`; the call pushes a return address as the calling convention wants it.
#[doc(hidden)]
#[macro_export]
macro_rules! entry_point {
    ($begin:path, $main:path) => {
        #[cfg(target_os = "none")]
        #[allow(unsafe_code, reason = "the entry point has no Rust caller")]
        #[unsafe(naked)]
        #[unsafe(no_mangle)]
        extern "C" fn _start(info: u64) -> ! {
            extern "C" fn start(info: u64) -> ! {
                let main: fn(_) -> ! = $main;
                main($begin(info))
            }
            core::arch::naked_asm!("xor ebp, ebp", "call {start}", "ud2", start = sym start)
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_found_by_name() {
        assert_eq!(option("mode=mux debug-exit log=debug", "mode"), Some("mux"));
        assert_eq!(option("mode=mux debug-exit", "debug-exit"), Some(""));
        assert_eq!(option("mode=mux", "mod"), None);
        assert_eq!(option("a==", "a"), Some("="));
    }

    #[test]
    fn start_information_that_cannot_be_is_refused() {
        assert!(decode(&[]).is_none());
        assert!(decode(&[255, 255, 255, 255, 1, 2]).is_none());
        assert!(decode(&[2, 0, 0, 0, 1, 2]).is_none());
    }

    #[test]
    fn the_start_information_is_decoded_as_it_was_encoded() {
        let mut ports = proto::text::List::new();
        ports.push((0x3f8, 8)).unwrap();
        let info = DomainInfo {
            domid: 7,
            name: Text::truncated("console"),
            event: 1,
            timer_signals: 2,
            heap: Region { addr: 4096, len: 8192 },
            tsc_khz: 1_000_000,
            wall_clock_base_ns: 5,
            channels: proto::text::List::new(),
            devices: proto::text::List::new(),
            ports,
            lines: proto::text::List::new(),
            options: Text::truncated("mode=mux"),
            file: Region { addr: 1 << 40, len: 3 },
            guest: None,
        };
        let mut bytes = [0; 256];
        let body = postcard::to_slice(&info, &mut bytes).unwrap();
        assert_eq!(decode_all(body), Some(&info));
        assert_eq!(decode_all(&body[..body.len() - 1]), None);
    }

    #[test]
    fn the_front_of_the_start_information_is_decoded_without_the_rest() {
        let front = (5u32, Text::<32>::truncated("x"), 3u32, 2u64, Region { addr: 4096, len: 8192 });
        let mut bytes = [0; 64];
        let len = postcard::to_slice(&front, &mut bytes[4..]).unwrap().len();
        bytes[..4].copy_from_slice(&(len as u32).to_le_bytes());
        assert_eq!(decode(&bytes).map(|(heap, _)| heap), Some(front.4));
    }
}

//! Network interface specifications (xl-network-configuration(5)): `key=value` and flags between commas.

use alloc::format;
use alloc::string::{String, ToString};

use super::report::Report;
use super::source::{Span, Spanned};
use super::syntax::Atom;
use crate::nearest::nearest;

/// The bridge of an interface that names none.
pub const DEFAULT_BRIDGE: &str = "xenbr0";
/// Longest name of a bridge in bytes.
const BRIDGE_MAX: usize = 64;

/// A network interface of a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vif {
    /// MAC address; the one of the configuration or one that follows from the guest's UUID.
    pub mac: Spanned<[u8; 6]>,
    /// Bridge.
    pub bridge: Spanned<String>,
    /// The guest need not protect itself against its backend.
    pub is_trusted: bool,
}

const KEYS: [&str; 15] = [
    "mac",
    "bridge",
    "type",
    "model",
    "ip",
    "script",
    "backend",
    "vifname",
    "rate",
    "gatewaydev",
    "netdev",
    "devid",
    "mtu",
    "vlan",
    "trusted",
];

/// Reads one specification; `default_mac` is for an interface that names none.
pub(super) fn parse(spec: &Atom, default_mac: [u8; 6], report: &mut Report<'_>) -> Option<Vif> {
    let errors_before = report.errors();
    let mut vif = Vif {
        mac: Spanned { value: default_mac, span: spec.span },
        bridge: Spanned { value: DEFAULT_BRIDGE.to_string(), span: spec.span },
        is_trusted: true,
    };
    for parameter in spec.text.split(',') {
        let parameter = parameter.trim_start_matches(' ');
        let place = spec.place(parameter);
        match parameter.split_once('=') {
            None if parameter.is_empty() => {}
            None if parameter == "trusted" => vif.is_trusted = true,
            None if parameter == "untrusted" => vif.is_trusted = false,
            None => unknown(place, parameter, report),
            Some(("mac", value)) => match parse_mac(value) {
                Some(mac) if mac[0] & 1 == 0 && mac != [0; 6] => {
                    vif.mac = Spanned { value: mac, span: spec.place(value) };
                }
                Some(_) => report.error(
                    spec.place(value),
                    format!("{value} is no address of one interface; take one of Xen's: 00:16:3e:XX:XX:XX"),
                ),
                None => report.error(
                    spec.place(value),
                    format!("`{value}` is no MAC address; write six hexadecimal bytes, for example 00:16:3e:12:34:56"),
                ),
            },
            Some(("bridge", "")) => report.error(place, "the bridge's name is missing; leave bridge= out for xenbr0"),
            Some(("bridge", value)) if value.len() > BRIDGE_MAX => {
                report.error(spec.place(value), format!("a bridge's name has at most {BRIDGE_MAX} bytes"));
            }
            Some(("bridge", value)) => {
                vif.bridge = Spanned { value: value.to_string(), span: spec.place(value) };
            }
            Some(("type", "vif")) => {}
            Some(("type", _)) => {
                report.error(place, "emulated network cards are not supported; write type=vif or leave it out");
            }
            Some((
                "model" | "ip" | "script" | "backend" | "vifname" | "rate" | "gatewaydev" | "netdev" | "devid" | "mtu"
                | "vlan" | "accel" | "forwarddev",
                _,
            )) => report.error(place, format!("vif parameter `{parameter}` is not supported; remove it")),
            Some((key, _)) if key.starts_with("colo_") => {
                report.error(place, format!("vif parameter `{parameter}` is not supported; remove it"));
            }
            Some((key, _)) => unknown(place, key, report),
        }
    }
    (report.errors() == errors_before).then_some(vif)
}

fn unknown(place: Span, word: &str, report: &mut Report<'_>) {
    let message = match nearest(word, KEYS) {
        Some(key) => format!("`{word}` is no vif parameter; did you mean `{key}`?"),
        None => format!("`{word}` is no vif parameter; a vif is 'mac=00:16:3e:12:34:56,bridge=xenbr0'"),
    };
    report.error(place, message);
}

/// Six hexadecimal bytes between colons.
fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut groups = text.split(':');
    for byte in &mut mac {
        let group = groups.next().filter(|g| matches!(g.len(), 1 | 2))?;
        *byte =
            group.bytes().all(|b| b.is_ascii_hexdigit()).then(|| u8::from_str_radix(group, 16).ok())??;
    }
    groups.next().is_none().then_some(mac)
}

//! UUIDs and MAC addresses, and those that guests get whose configuration names none.
//!
//! xl takes random ones. Here they follow from the guest's name, so that a guest keeps its address on
//! its network and its identity from one run of the machine to the next.

/// 32 hexadecimal digits; hyphens may stand between bytes, as libxl has it.
pub(super) fn parse_uuid(text: &str) -> Option<[u8; 16]> {
    let mut uuid = [0; 16];
    let mut digits = text.bytes().peekable();
    for (index, byte) in uuid.iter_mut().enumerate() {
        if index > 0 {
            digits.next_if_eq(&b'-');
        }
        let mut value = 0;
        for _ in 0..2 {
            value = value << 4 | char::from(digits.next()?).to_digit(16)?;
        }
        *byte = u8::try_from(value).ok()?;
    }
    digits.next().is_none().then_some(uuid)
}

/// A UUID of version 8 (RFC 9562: vendor-specific) from a guest's name.
pub(super) fn uuid_from_name(name: &str) -> [u8; 16] {
    let high = fnv1a(0, name.as_bytes());
    let low = fnv1a(1, name.as_bytes());
    let mut uuid = (u128::from(high) << 64 | u128::from(low)).to_be_bytes();
    uuid[6] = 0x80 | uuid[6] & 0x0f;
    uuid[8] = 0x80 | uuid[8] & 0x3f;
    uuid
}

/// An address of Xen's range 00:16:3e for a guest's interface; like libxl, only the lower half of it.
pub(super) fn mac_from_uuid(uuid: &[u8; 16], index: usize) -> [u8; 6] {
    let index = u8::try_from(index).unwrap_or(u8::MAX);
    let hash = fnv1a(2 + u64::from(index), uuid).to_le_bytes();
    [0x00, 0x16, 0x3e, hash[0] & 0x7f, hash[1], hash[2]]
}

/// FNV-1a (64 bits), finished with an xor-shift so that the low bytes depend on all input.
fn fnv1a(seed: u64, bytes: &[u8]) -> u64 {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325 ^ seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for &byte in bytes {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    }
    hash ^= hash >> 32;
    hash = hash.wrapping_mul(0xd6e8_feb8_6659_fd93);
    hash ^ hash >> 32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_uuids() {
        let expected =
            [0xc0, 0xa7, 0xd3, 0xe2, 0x1b, 0x5f, 0x4e, 0x6a, 0x9d, 0x8c, 0x7b, 0x6a, 0x5f, 0x4e, 0x3d, 0x2c];
        assert_eq!(parse_uuid("c0a7d3e2-1b5f-4e6a-9d8c-7b6a5f4e3d2c"), Some(expected));
        assert_eq!(parse_uuid("C0A7D3E21B5F4E6A9D8C7B6A5F4E3D2C"), Some(expected));
        for text in [
            "",
            "c0a7d3e2",
            "c0a7d3e2-1b5f-4e6a-9d8c-7b6a5f4e3d2",
            "c0a7d3e2-1b5f-4e6a-9d8c-7b6a5f4e3d2c0",
            "g0a7d3e2-1b5f-4e6a-9d8c-7b6a5f4e3d2c",
            "-c0a7d3e21b5f4e6a9d8c7b6a5f4e3d2c",
            "c0a7d3e21b5f4e6a9d8c7b6a5f4e3d2c-",
        ] {
            assert_eq!(parse_uuid(text), None, "{text}");
        }
    }

    #[test]
    fn derived_identities_are_stable_and_differ() {
        let web = uuid_from_name("web");
        assert_eq!(web, uuid_from_name("web"));
        assert_ne!(web, uuid_from_name("wec"));
        assert_eq!((web[6] >> 4, web[8] >> 6), (8, 2));
        let mac = mac_from_uuid(&web, 0);
        assert_eq!(mac[..3], [0, 0x16, 0x3e]);
        assert_ne!(mac, mac_from_uuid(&web, 1));
        assert_ne!(mac, mac_from_uuid(&uuid_from_name("db"), 0));
    }
}

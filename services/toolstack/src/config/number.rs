//! Numbers as xl reads them (C's strtol with base 0): decimal, `0x` hexadecimal, `0` octal.

/// The number, or nothing if the text is none or it is too large.
pub(super) fn parse(text: &str) -> Option<u64> {
    let (digits, radix) = if let Some(hex) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        (hex, 16)
    } else if text.len() > 1 && text.starts_with('0') {
        (text, 8)
    } else {
        (text, 10)
    };
    // `from_str_radix` would take a sign.
    digits.bytes().all(|b| b.is_ascii_hexdigit()).then(|| u64::from_str_radix(digits, radix).ok())?
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn reads_three_bases() {
        assert_eq!(parse("512"), Some(512));
        assert_eq!(parse("0x200"), Some(512));
        assert_eq!(parse("01000"), Some(512));
        assert_eq!(parse("0"), Some(0));
    }

    #[test]
    fn refuses_what_is_no_number() {
        for text in ["", "0x", "08", "1f", "-1", "+1", " 1", "99999999999999999999", "1k"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}

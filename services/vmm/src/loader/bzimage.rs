//! bzImage: finds the compressed ELF file in it and unpacks it.
//!
//! The kernel's own decompressor never runs. Source: Linux Documentation/arch/x86/boot.rst (setup header
//! fields payload_offset and payload_length, boot protocol 2.08).

use alloc::vec;
use alloc::vec::Vec;

use super::LoadError;

/// Most bytes that a kernel may unpack to.
pub const UNPACKED_MAX: u64 = 512 << 20;
/// Largest window of a zstd frame, and dictionary of an xz stream, that is accepted (Debian's have 128 MiB
/// and 32 MiB).
const WINDOW_MAX: u64 = 128 << 20;

const ELF_MAGIC: &[u8] = b"\x7fELF";
const SETUP_SECTS: usize = 0x1f1;
const HEADER_MAGIC: usize = 0x202;
const BOOT_PROTOCOL: usize = 0x206;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;

fn field<const N: usize>(file: &[u8], offset: usize) -> Result<[u8; N], LoadError> {
    file.get(offset..)
        .and_then(|rest| rest.first_chunk())
        .copied()
        .ok_or(LoadError::Truncated("the bzImage's setup header"))
}

/// The ELF file in a kernel file: the file itself if it is one, else a bzImage's unpacked payload.
///
/// # Errors
/// What is wrong with the file.
pub fn extract_elf(file: &[u8]) -> Result<Vec<u8>, LoadError> {
    extract_elf_limited(file, UNPACKED_MAX)
}

/// As [`extract_elf`], with at most `limit` bytes of result.
///
/// # Errors
/// What is wrong with the file.
pub fn extract_elf_limited(file: &[u8], limit: u64) -> Result<Vec<u8>, LoadError> {
    if file.starts_with(ELF_MAGIC) {
        return Ok(file.to_vec());
    }
    if file.get(HEADER_MAGIC..HEADER_MAGIC + 4) != Some(b"HdrS") {
        return Err(LoadError::UnknownFormat);
    }
    let version = u16::from_le_bytes(field(file, BOOT_PROTOCOL)?);
    if version < 0x208 {
        return Err(LoadError::OldBootProtocol(version));
    }
    let [setup_sects] = field(file, SETUP_SECTS)?;
    let setup_sects = if setup_sects == 0 { 4 } else { usize::from(setup_sects) };
    let offset = u32::from_le_bytes(field(file, PAYLOAD_OFFSET)?) as usize;
    let length = u32::from_le_bytes(field(file, PAYLOAD_LENGTH)?) as usize;
    let payload = ((setup_sects + 1) * 512)
        .checked_add(offset)
        .and_then(|start| Some(start..start.checked_add(length)?))
        .and_then(|range| file.get(range))
        .ok_or(LoadError::Truncated("the bzImage's payload"))?;
    let (stream, size) = payload.split_last_chunk::<4>().ok_or(LoadError::Corrupt("its payload is empty"))?;
    let size = u64::from(u32::from_le_bytes(*size));
    let decoder = decoder_of(stream)?;
    if size > limit.min(UNPACKED_MAX) {
        return Err(LoadError::TooLarge(size, limit.min(UNPACKED_MAX)));
    }
    let elf = decoder(stream, size as usize)?;
    if !elf.starts_with(ELF_MAGIC) {
        return Err(LoadError::Corrupt("its payload is not an ELF file"));
    }
    Ok(elf)
}

/// Magic number of LZ4's legacy framing.
const LZ4_LEGACY: &[u8; 4] = b"\x02\x21\x4c\x18";

type Decoder = fn(&[u8], usize) -> Result<Vec<u8>, LoadError>;

fn decoder_of(stream: &[u8]) -> Result<Decoder, LoadError> {
    let known: [(&[u8], Result<Decoder, &'static str>); 8] = [
        (b"\xfd7zXZ\0", Ok(unpack_xz)),
        (b"\x28\xb5\x2f\xfd", Ok(unpack_zstd)),
        (LZ4_LEGACY, Ok(unpack_lz4)),
        (b"\x1f\x8b", Ok(unpack_gzip)),
        (b"\x1f\x9e", Ok(unpack_gzip)),
        (b"\x5d\0", Err("lzma")),
        (b"BZh", Err("bzip2")),
        (b"\x89LZO", Err("LZO")),
    ];
    for (magic, decoder) in known {
        if stream.starts_with(magic) {
            return decoder.map_err(LoadError::Compression);
        }
    }
    Err(LoadError::Corrupt("its payload's compression is unknown"))
}

fn unpack_xz(stream: &[u8], size: usize) -> Result<Vec<u8>, LoadError> {
    use xz4rust::{XzDecoder, XzNextBlockResult};
    const BROKEN: LoadError = LoadError::Corrupt("its xz stream is broken");
    let mut out = vec![0; size];
    let mut decoder = XzDecoder::in_heap_with_alloc_dict_size(1 << 20, WINDOW_MAX as usize);
    let (mut consumed, mut produced) = (0, 0);
    loop {
        let input = stream.get(consumed..).unwrap_or(&[]);
        let output = out.get_mut(produced..).unwrap_or(&mut []);
        let (is_end, used, made) = match decoder.decode(input, output) {
            Ok(XzNextBlockResult::NeedMoreData(used, made)) => (false, used, made),
            Ok(XzNextBlockResult::EndOfStream(used, made)) => (true, used, made),
            Err(_) => return Err(BROKEN),
        };
        consumed += used;
        produced += made;
        if is_end {
            break;
        }
        // Without progress it wants more input than there is, or more room than the size promises.
        if used == 0 && made == 0 {
            return Err(BROKEN);
        }
    }
    if produced == size { Ok(out) } else { Err(BROKEN) }
}

fn unpack_zstd(stream: &[u8], size: usize) -> Result<Vec<u8>, LoadError> {
    const BROKEN: LoadError = LoadError::Corrupt("its zstd stream is broken");
    let mut out = vec![0; size];
    let mut decoder = ruzstd::decoding::FrameDecoder::new();
    decoder.set_max_window_size(WINDOW_MAX);
    let produced = decoder.decode_all(stream, &mut out).map_err(|_| BROKEN)?;
    let sum_matches = decoder.get_checksum_from_data().is_none()
        || decoder.get_checksum_from_data() == decoder.get_calculated_checksum();
    if produced == size && sum_matches { Ok(out) } else { Err(BROKEN) }
}

/// LZ4's legacy framing: a magic number, then blocks with their compressed length in front, each of which
/// unpacks to at most 8 MiB. Where streams were put together a magic number stands in place of a length.
fn unpack_lz4(stream: &[u8], size: usize) -> Result<Vec<u8>, LoadError> {
    const BROKEN: LoadError = LoadError::Corrupt("its lz4 stream is broken");
    const BLOCK: usize = 8 << 20;
    let mut out = vec![0; size];
    let mut produced = 0;
    let mut rest = stream;
    while produced < size {
        let (len, tail) = rest.split_first_chunk::<4>().ok_or(BROKEN)?;
        if len == LZ4_LEGACY {
            rest = tail;
            continue;
        }
        let len = u32::from_le_bytes(*len) as usize;
        let (block, tail) = tail.split_at_checked(len).ok_or(BROKEN)?;
        let end = size.min(produced + BLOCK);
        let room = out.get_mut(produced..end).ok_or(BROKEN)?;
        let made = lz4_flex::block::decompress_into(block, room).map_err(|_| BROKEN)?;
        if made == 0 {
            return Err(BROKEN);
        }
        produced += made;
        rest = tail;
    }
    Ok(out)
}

/// Gzip: the size behind the payload doubles as the end of the trailer, whose first half is the CRC-32.
fn unpack_gzip(stream: &[u8], size: usize) -> Result<Vec<u8>, LoadError> {
    use miniz_oxide::inflate::decompress_to_vec_with_limit;
    const BROKEN: LoadError = LoadError::Corrupt("its gzip stream is broken");
    let (body, sum) = stream.split_last_chunk::<4>().ok_or(BROKEN)?;
    let out = decompress_to_vec_with_limit(gzip_body(body).ok_or(BROKEN)?, size).map_err(|_| BROKEN)?;
    if out.len() == size && crc32(&out) == u32::from_le_bytes(*sum) { Ok(out) } else { Err(BROKEN) }
}

/// What follows a gzip member's header (RFC 1952, 2.3).
fn gzip_body(member: &[u8]) -> Option<&[u8]> {
    let (header, mut rest) = member.split_first_chunk::<10>()?;
    let flags = header[3];
    if header[2] != 8 {
        return None;
    }
    if flags & 4 != 0 {
        let (len, tail) = rest.split_first_chunk::<2>()?;
        rest = tail.get(usize::from(u16::from_le_bytes(*len))..)?;
    }
    for text in [8, 16] {
        if flags & text != 0 {
            rest = rest.get(rest.iter().position(|&byte| byte == 0)? + 1..)?;
        }
    }
    if flags & 2 != 0 {
        rest = rest.get(2..)?;
    }
    Some(rest)
}

/// The CRC of RFC 1952, section 8, by a table of nibbles.
fn crc32(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 16] = {
        let mut table = [0; 16];
        let mut n = 0;
        while n < 16 {
            let mut crc = n as u32;
            let mut bit = 0;
            while bit < 4 {
                crc = if crc & 1 != 0 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
                bit += 1;
            }
            table[n] = crc;
            n += 1;
        }
        table
    };
    !bytes.iter().fold(!0, |crc, &byte| {
        let crc = crc ^ u32::from(byte);
        let crc = crc >> 4 ^ TABLE[(crc & 15) as usize];
        crc >> 4 ^ TABLE[(crc & 15) as usize]
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A bzImage around a payload stream that unpacks to `size` bytes.
    fn bzimage(stream: &[u8], size: u32) -> Vec<u8> {
        let mut file = vec![0; 3 * 512];
        file[SETUP_SECTS] = 1;
        file[HEADER_MAGIC..HEADER_MAGIC + 4].copy_from_slice(b"HdrS");
        file[BOOT_PROTOCOL..BOOT_PROTOCOL + 2].copy_from_slice(&0x20fu16.to_le_bytes());
        file[PAYLOAD_OFFSET..PAYLOAD_OFFSET + 4].copy_from_slice(&512u32.to_le_bytes());
        file[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4].copy_from_slice(&(stream.len() as u32 + 4).to_le_bytes());
        file.extend_from_slice(stream);
        file.extend_from_slice(&size.to_le_bytes());
        file
    }

    fn content() -> Vec<u8> {
        let mut elf = ELF_MAGIC.to_vec();
        elf.extend((0..5000u32).flat_map(|n| (n / 3).to_le_bytes()));
        elf
    }

    fn gzip(content: &[u8]) -> Vec<u8> {
        let mut stream = b"\x1f\x8b\x08\x08\0\0\0\0\0\x03name\0".to_vec();
        stream.extend(miniz_oxide::deflate::compress_to_vec(content, 6));
        stream.extend_from_slice(&crc32(content).to_le_bytes());
        stream
    }

    fn lz4(content: &[u8]) -> Vec<u8> {
        let block = lz4_flex::block::compress(content);
        let mut stream = b"\x02\x21\x4c\x18".to_vec();
        stream.extend((block.len() as u32).to_le_bytes());
        stream.extend(block);
        stream
    }

    #[test]
    fn crc32_of_the_standard_check_string() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn gzip_and_lz4_payloads_come_out_whole() {
        let content = content();
        let size = content.len() as u32;
        assert_eq!(extract_elf(&bzimage(&gzip(&content), size)).unwrap(), content);
        assert_eq!(extract_elf(&bzimage(&lz4(&content), size)).unwrap(), content);
        assert_eq!(extract_elf(&content).unwrap(), content);
    }

    #[test]
    fn each_defect_has_its_own_sentence() {
        let content = content();
        let size = content.len() as u32;
        let good = bzimage(&gzip(&content), size);
        assert_eq!(extract_elf(b"hello"), Err(LoadError::UnknownFormat));
        assert_eq!(extract_elf(&good[..600]), Err(LoadError::Truncated("the bzImage's payload")));
        assert_eq!(extract_elf(&good[..0x206]), Err(LoadError::Truncated("the bzImage's setup header")));
        let mut old = good.clone();
        old[BOOT_PROTOCOL] = 7;
        assert_eq!(extract_elf(&old), Err(LoadError::OldBootProtocol(0x207)));
        let mut flipped = good.clone();
        let middle = good.len() - 200;
        flipped[middle] ^= 0x10;
        assert!(matches!(extract_elf(&flipped), Err(LoadError::Corrupt(_))));
        assert_eq!(extract_elf(&bzimage(b"BZh91AY", 9)), Err(LoadError::Compression("bzip2")));
        assert_eq!(extract_elf(&bzimage(b"\x89LZO", 9)), Err(LoadError::Compression("LZO")));
        assert_eq!(extract_elf(&bzimage(b"\x5d\0\0\0", 9)), Err(LoadError::Compression("lzma")));
        assert_eq!(extract_elf_limited(&good, 1000), Err(LoadError::TooLarge(u64::from(size), 1000)));
        assert!(matches!(extract_elf(&bzimage(&gzip(&content), size - 1)), Err(LoadError::Corrupt(_))));
        assert!(matches!(extract_elf(&bzimage(&lz4(&content), size + 1)), Err(LoadError::Corrupt(_))));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn damaged_files_are_errors_and_never_panics(
            at in 0usize..4000, value: u8, cut in 0usize..8000, which in 0u8..4, noise in prop::collection::vec(any::<u8>(), 0..300)
        ) {
            let content = content();
            let size = content.len() as u32;
            let mut file = match which {
                0 => bzimage(&gzip(&content), size),
                1 => bzimage(&lz4(&content), size),
                2 => bzimage(&[b"\xfd7zXZ\0".as_slice(), &noise].concat(), size),
                _ => bzimage(&[b"\x28\xb5\x2f\xfd".as_slice(), &noise].concat(), size),
            };
            if let Some(byte) = file.get_mut(at) {
                *byte = value;
            }
            file.truncate(cut.max(4));
            let _ = extract_elf(&file);
        }
    }
}

//! A PVH kernel of a few bytes, written by hand: an ELF file for either class that looks at what it was given, says
//! so on the debug console, and halts, which powers it off.
//!
//! Its only note lies outside of every segment, as GRUB's, and has the length that its class usually has not got
//! elsewhere: 4 bytes in ELF32, 8 bytes in ELF64. Sources: System V ABI (ELF); Xen docs/misc/pvh.pandoc,
//! public/arch-x86/hvm/start_info.h.

/// Where the 64-bit one is loaded: what it says, its zeros and nothing more fit below the RAM's end at 32 MiB.
const ADDRESS_64: u32 = 0x1ff_f000;
/// Where the 32-bit one is.
const ADDRESS_32: u32 = 0x10_0000;
/// Bytes of the file that are loaded; as many of zeros follow.
const FILLED: u32 = 0x800;
/// Offset of the texts in the segment.
const GOOD: usize = 0x100;
const BAD: usize = 0x180;
/// Length of either.
const TEXT: usize = 0x60;
/// Start of the file's content, behind header and program headers.
const CONTENT: usize = 0x200;

/// Which class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// ELF32, at 1 MiB.
    Elf32,
    /// ELF64, in the last page of 32 MiB.
    Elf64,
}

impl Class {
    /// Name of a guest with it.
    pub fn name(self) -> &'static str {
        if self == Self::Elf32 { "minimal-32" } else { "minimal-64" }
    }
}

/// What the kernel says if all is as it should be in a guest of 32 MiB.
pub fn good(class: Class) -> String {
    format!("{}: start information, 32 MiB of RAM and zeros behind the file are there", class.name())
}

fn put(bytes: &mut [u8], at: usize, what: &[u8]) {
    if let Some(to) = bytes.get_mut(at..at + what.len()) {
        to.copy_from_slice(what);
    }
}

/// 32-bit code at `base`, to be entered with the start information's address in EBX.
fn code(base: u32) -> Vec<u8> {
    let mut code = Vec::new();
    let mut jumps = Vec::new();
    // cmp dword [ebx], XEN_HVM_START_MAGIC_VALUE
    code.extend([0x81, 0x3b, 0x78, 0xc5, 0x6e, 0x33]);
    let mut unless_equal = |code: &mut Vec<u8>| {
        // jne, to where the other text is chosen
        code.extend([0x75, 0]);
        jumps.push(code.len());
    };
    unless_equal(&mut code);
    // mov eax, [ebx + 40]: the memory map, whose first entry begins with address and length
    code.extend([0x8b, 0x43, 40]);
    // cmp dword [eax], 0
    code.extend([0x83, 0x38, 0]);
    unless_equal(&mut code);
    // cmp dword [eax + 8], 32 MiB
    code.extend([0x81, 0x78, 8, 0, 0, 0, 2]);
    unless_equal(&mut code);
    // mov edi, zeros; mov ecx, number of words; xor eax, eax; repe scasd
    code.push(0xbf);
    code.extend((base + FILLED).to_le_bytes());
    code.push(0xb9);
    code.extend((FILLED / 4).to_le_bytes());
    code.extend([0x31, 0xc0, 0xf3, 0xaf]);
    unless_equal(&mut code);
    // mov esi, good text; jmp over the next instruction
    code.push(0xbe);
    code.extend((base + GOOD as u32).to_le_bytes());
    code.extend([0xeb, 5]);
    let target = code.len();
    for end in jumps {
        put(&mut code, end - 1, &[(target - end) as u8]);
    }
    // mov esi, bad text
    code.push(0xbe);
    code.extend((base + BAD as u32).to_le_bytes());
    // mov ecx, length; mov edx, debug console; rep outsb
    code.push(0xb9);
    code.extend((TEXT as u32).to_le_bytes());
    code.extend([0xba, 0xe9, 0, 0, 0, 0xf3, 0x6e]);
    // cli; hlt
    code.extend([0xfa, 0xf4]);
    code
}

/// The kernel's file.
pub fn kernel(class: Class) -> Vec<u8> {
    let is_32 = class == Class::Elf32;
    let base = if is_32 { ADDRESS_32 } else { ADDRESS_64 };
    let mut file = vec![0; CONTENT + FILLED as usize];
    put(&mut file, CONTENT, &code(base));
    let say = |text: String| format!("{text:<0$}\n", TEXT - 1);
    put(&mut file, CONTENT + GOOD, say(good(class)).as_bytes());
    put(&mut file, CONTENT + BAD, say(format!("{}: FAIL", class.name())).as_bytes());

    // namesz, descsz, PHYS32_ENTRY, the name, and the entry point: the segment's first byte.
    let mut note = Vec::new();
    for word in [4, if is_32 { 4 } else { 8 }, 18u32] {
        note.extend(word.to_le_bytes());
    }
    note.extend(*b"Xen\0");
    note.extend(base.to_le_bytes());
    note.resize(if is_32 { 20 } else { 24 }, 0);
    let note_at = file.len();
    file.extend(&note);

    let (machine, table, header_len, entry_len) = if is_32 { (3, 52u8, 52, 32) } else { (62, 64, 64, 56) };
    put(&mut file, 0, &[0x7f, b'E', b'L', b'F', if is_32 { 1 } else { 2 }, 1, 1]);
    // e_type, e_machine, e_version; e_entry stays 0, it is not the PVH entry.
    put(&mut file, 16, &[2, 0, machine, 0, 1]);
    put(&mut file, if is_32 { 28 } else { 32 }, &[table]);
    put(&mut file, if is_32 { 40 } else { 52 }, &[header_len, 0, entry_len, 0, 2]);
    // p_offset, p_vaddr, p_paddr, p_filesz, p_memsz of PT_LOAD and PT_NOTE.
    let load = (1u32, [CONTENT as u32, base, base, FILLED, 2 * FILLED]);
    let notes = (4, [note_at as u32, 0, 0, note.len() as u32, note.len() as u32]);
    for (n, (kind, fields)) in [load, notes].into_iter().enumerate() {
        let at = usize::from(table) + n * usize::from(entry_len);
        put(&mut file, at, &kind.to_le_bytes());
        for (n, field) in fields.into_iter().enumerate() {
            let at = if is_32 { at + 4 + 4 * n } else { at + 8 + 8 * n };
            put(&mut file, at, &field.to_le_bytes());
        }
    }
    file
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_fits_where_it_is_put() {
        const { assert!(ADDRESS_64 + 2 * FILLED == 32 << 20) };
        assert!(code(0).len() <= GOOD && TEXT <= BAD - GOOD && good(Class::Elf64).len() < TEXT);
    }
}

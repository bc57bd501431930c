# PVH entry: 32-bit protected mode without paging, ebx = start information.
# Maps guest-physical 0..4 GiB to itself, switches to long mode and calls main(start information).

    .section .note.Xen, "a", @note
    .balign 4
    .long 4, 4, 18                  # name and content of 4 bytes; XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .long entry32

    .section .text.entry, "ax", @progbits
    .code32
    .global entry32
entry32:
    movl %eax, entry_state          # what the vCPU began with, for the mode that checks it
    movl %ecx, entry_state+4
    movl %edx, entry_state+8
    movl %ebp, entry_state+12
    movl %esi, entry_state+16
    movl %edi, entry_state+20
    movl %esp, entry_state+24
    movl $stack_top, %esp
    pushfl
    popl entry_state+28
    movl %cr0, %eax
    movl %eax, entry_state+32
    movl %cr2, %eax
    movl %eax, entry_state+36
    movl %cr3, %eax
    movl %eax, entry_state+40
    movl %cr4, %eax
    movl %eax, entry_state+44
    movl $0xc0000080, %ecx          # EFER
    rdmsr
    movl %eax, entry_state+48
    cld
    movl %ebx, %esi
    movl $directories, %edi
    movl $0x87, %eax                # present, writable, user, 2 MiB
    movl $2048, %ecx
1:  movl %eax, (%edi)
    movl $0, 4(%edi)
    addl $0x200000, %eax
    addl $8, %edi
    decl %ecx
    jnz 1b
    movl $pointers, %edi
    movl $directories, %eax
    orl $7, %eax
    movl $4, %ecx
2:  movl %eax, (%edi)
    addl $4096, %eax
    addl $8, %edi
    decl %ecx
    jnz 2b
    movl $pointers, %eax
    orl $3, %eax                    # for CPL 3 only where traps::user adds the bit
    movl %eax, top
    movl $top, %eax
    movl %eax, %cr3
    movl $0x20, %eax                # PAE
    movl %eax, %cr4
    movl $0xc0000080, %ecx
    rdmsr
    orl $0x900, %eax                # LME, NXE
    wrmsr
    movl $0x80000011, %eax          # PG, ET, PE
    movl %eax, %cr0
    lgdt gdt_pointer
    pushl $8
    pushl $entry64
    lretl

    .code64
entry64:
    movl $16, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl %esi, %edi
    call main
    ud2

    .section .data.entry, "aw", @progbits
    .balign 8
    .global entry_state
entry_state:
    .skip 56
    .global gdt, gdt_end
gdt:
    .quad 0
    .quad 0x00af9b000000ffff        # 0x08 code, 64 bits
    .quad 0x00cf93000000ffff        # 0x10 data
    .quad 0x00cf9b000000ffff        # 0x18 code, 32 bits
    .quad 0x008f9b000000ffff        # 0x20 code, 16 bits
    .quad 0x00cffb000000ffff        # 0x28 code, 32 bits, CPL 3
    .quad 0x00cff3000000ffff        # 0x30 data, CPL 3
    .quad 0x00affb000000ffff        # 0x38 code, 64 bits, CPL 3
    .quad 0, 0                      # 0x40 task state segment
gdt_end:
gdt_pointer:
    .word gdt_end - gdt - 1
    .long gdt

    .section .bss.entry, "aw", @nobits
    .balign 4096
    .global top
top:
    .skip 4096
pointers:
    .skip 4096
directories:
    .skip 4 * 4096
    .skip 64 * 1024
stack_top:

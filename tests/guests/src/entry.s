# PVH entry: 32-bit protected mode without paging, ebx = start information.
# Maps guest-physical 0..4 GiB to itself, switches to long mode and calls main(start information).
# Exceptions go to `recover`, which continues at the address in `recovery` with every register unchanged.

    .section .note.Xen, "a", @note
    .balign 4
    .long 4, 4, 18                  # name and content of 4 bytes; XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .long entry32

    .section .text.entry, "ax", @progbits
    .code32
    .global entry32
entry32:
    cld
    movl $stack_top, %esp
    movl %ebx, %esi
    movl $directories, %edi
    movl $0x83, %eax                # present, writable, 2 MiB
    movl $2048, %ecx
1:  movl %eax, (%edi)
    movl $0, 4(%edi)
    addl $0x200000, %eax
    addl $8, %edi
    decl %ecx
    jnz 1b
    movl $pointers, %edi
    movl $directories, %eax
    orl $3, %eax
    movl $4, %ecx
2:  movl %eax, (%edi)
    addl $4096, %eax
    addl $8, %edi
    decl %ecx
    jnz 2b
    movl $pointers, %eax
    orl $3, %eax
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

    # One stub of 32 bytes per exception; those without an error code push a zero.
    .balign 32
    .global stubs
stubs:
    .set vector, 0
    .rept 32
    .balign 32
    .if !(vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21)
    pushq $0
    .endif
    movq $vector, last_vector(%rip)
    jmp recover
    .set vector, vector + 1
    .endr

recover:
    pushq %rax
    incq faults(%rip)
    movq recovery(%rip), %rax
    movq %rax, 16(%rsp)             # below: rax, error code, rip
    popq %rax
    addq $8, %rsp
    iretq

    .section .data.entry, "aw", @progbits
    .balign 8
gdt:
    .quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff
gdt_pointer:
    .word 23
    .long gdt
    .global recovery, faults, last_vector
    .balign 8
recovery:
    .quad 0
faults:
    .quad 0
last_vector:
    .quad 0

    .section .bss.entry, "aw", @nobits
    .balign 4096
top:
    .skip 4096
pointers:
    .skip 4096
directories:
    .skip 4 * 4096
    .skip 64 * 1024
stack_top:

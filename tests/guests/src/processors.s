# What a processor executes after a start-up interrupt: copied to the page that the interrupt names. It writes down the
# state it finds from 0xe00 of that page on, switches to long mode with what the boot processor left at 0xe80, and
# calls processor_main(address of the page).

    .section .rodata.processors, "a", @progbits
    .code16
    .global processor_start, processor_end
processor_start:
    movl %eax, %cs:0xe00
    movl %ecx, %cs:0xe04
    movl %edx, %cs:0xe08
    movl %ebx, %cs:0xe0c
    movl %esp, %cs:0xe10
    movl %ebp, %cs:0xe14
    movl %esi, %cs:0xe18
    movl %edi, %cs:0xe1c
    movl %cr0, %eax
    movl %eax, %cs:0xe20
    movl %cr2, %eax
    movl %eax, %cs:0xe24
    movl %cr3, %eax
    movl %eax, %cs:0xe28
    movl %cr4, %eax
    movl %eax, %cs:0xe2c
    movl %dr6, %eax
    movl %eax, %cs:0xe30
    movl %dr7, %eax
    movl %eax, %cs:0xe34
    movw %cs, %cs:0xe38
    movw %ds, %cs:0xe3a
    movw %es, %cs:0xe3c
    movw %ss, %cs:0xe3e
    movw %fs, %cs:0xe40
    movw %gs, %cs:0xe42
    movw %cs, %ax
    movw %ax, %ss
    movw $0xe00, %sp
    pushfl
    popl %cs:0xe44
    sgdtl %cs:0xe48
    sidtl %cs:0xe50
    movl $0xc0000080, %ecx          # EFER
    rdmsr
    movl %eax, %cs:0xe58
    orl $0x900, %eax                # LME, NXE
    wrmsr
    lgdtl %cs:0xe80
    movl $0x220, %eax               # PAE, OSFXSR
    movl %eax, %cr4
    movl %cs:0xe88, %eax
    movl %eax, %cr3
    xorl %ebx, %ebx
    movw %cs, %bx
    shll $4, %ebx
    movl $0x80000011, %eax          # PG, ET, PE
    movl %eax, %cr0
    ljmpl *%cs:0xe90
processor_end:

    .section .text.processors, "ax", @progbits
    .code64
    .global processor_entry
processor_entry:
    movl $16, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movq 0xe98(%rbx), %rsp
    movq %rbx, %rdi
    call processor_main
    ud2

# Loads the pattern in rdi into all XMM registers, spins until the word at rsi is not 0, and counts in rax how many
# registers have another value then.
    .global keep_registers
keep_registers:
    movq %rdi, %xmm0
    punpcklqdq %xmm0, %xmm0
    .irp n, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    movaps %xmm0, %xmm\n
    .endr
1:  pause
    cmpq $0, (%rsi)
    je 1b
    xorl %eax, %eax
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    movq %xmm\n, %rdx
    psrldq $8, %xmm\n
    movq %xmm\n, %rcx
    cmpq %rdi, %rdx
    setne %r8b
    cmpq %rdi, %rcx
    setne %r9b
    orb %r9b, %r8b
    movzbl %r8b, %r8d
    addl %r8d, %eax
    .endr
    ret

# Hypercalls from the modes of the processor in which nothing here runs otherwise.
#
# What they take and leave is in `narrow`, which modes.rs lays out: registers eax ebx ecx edx esi edi (offset 0), the
# control registers cr0 cr3 cr4 of the mode (24, 28, 32) and of 64-bit mode (36, 40, 44), efer (48), the stack pointer (56).
# Selectors are those of entry.s. Interrupts are off; a fault in here is a triple fault.

    .macro save
    pushq %rbx
    pushq %rbp
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    pushfq
    .endm
    .macro restore
    popfq
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbp
    popq %rbx
    .endm
    .macro load_registers
    movl narrow+4, %ebx
    movl narrow+8, %ecx
    movl narrow+12, %edx
    movl narrow+16, %esi
    movl narrow+20, %edi
    movl narrow, %eax
    .endm

    .section .text.modes, "ax", @progbits

# narrow_compat(selector of 32-bit code): a compatibility segment, at any CPL. eax: the answer.
    .global narrow_compat
    .code64
narrow_compat:
    save
    pushq %rdi
    leaq 1f(%rip), %rax
    pushq %rax
    load_registers
    lretq
    .code32
1:  vmmcall
    movl %cs, %ecx
    testl $3, %ecx
    jnz 2f
    ljmp $0x08, $3f
2:  ljmp $0x3b, $3f
    .code64
3:  movl %eax, %eax
    restore
    ret

# narrow_switch(is real mode): out of long mode, into the mode that cr0, cr3 and cr4 say, and back. eax: the answer.
    .global narrow_switch
narrow_switch:
    save
    cli
    movq %rsp, narrow+56
    movl %edi, %ebp
    movq %cr0, %rax
    movl %eax, narrow+36
    movq %cr3, %rax
    movl %eax, narrow+40
    movq %cr4, %rax
    movl %eax, narrow+44
    pushq $0x18
    leaq 1f(%rip), %rax
    pushq %rax
    lretq

    .code32
1:  movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl narrow+36, %eax
    andl $0x7fffffff, %eax          # PG, and with it LMA
    movl %eax, %cr0
    movl $0xc0000080, %ecx
    rdmsr
    movl %eax, narrow+48
    andl $~0x100, %eax              # LME
    wrmsr
    testl %ebp, %ebp
    jnz real
    movl narrow+32, %eax
    movl %eax, %cr4
    movl narrow+28, %eax
    movl %eax, %cr3
    movl narrow+24, %eax
    movl %eax, %cr0
    jmp 2f
2:  load_registers
    vmmcall
back:
    movl %eax, narrow
    movl narrow+36, %eax
    andl $0x7fffffff, %eax
    movl %eax, %cr0
    movl narrow+44, %eax
    movl %eax, %cr4
    movl narrow+40, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx
    xorl %edx, %edx
    movl narrow+48, %eax
    wrmsr
    movl narrow+36, %eax
    movl %eax, %cr0
    ljmp $0x08, $4f

    # Real mode, with the segments' bases and limits of before: this code is beyond 64 KiB.
real:
    ljmp $0x20, $1f
    .code16
1:  movl %cr0, %eax
    andl $~1, %eax
    movl %eax, %cr0
    movl $narrow, %ebp              # 16-bit code has no other 32-bit addresses
    movl 4(%ebp), %ebx
    movl 8(%ebp), %ecx
    movl 12(%ebp), %edx
    movl 16(%ebp), %esi
    movl 20(%ebp), %edi
    movl (%ebp), %eax
    vmmcall
    movl %eax, %ebp
    movl %cr0, %eax
    orl $1, %eax
    movl %eax, %cr0
    ljmpl $0x18, $2f
    .code32
2:  movl %ebp, %eax
    jmp back

    .code64
4:  movq narrow+56, %rsp
    movl narrow, %eax
    restore
    ret

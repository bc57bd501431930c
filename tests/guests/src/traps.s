# Traps: one stub of 16 bytes per vector, which calls on_trap(frame); and calls that a fault ends.

    .section .text.traps, "ax", @progbits
    .balign 16
    .global stubs
stubs:
    .set vector, 0
    .rept 256
    .balign 16
    .if !(vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21)
    pushq $0
    .endif
    pushq $vector
    jmp save
    .set vector, vector + 1
    .endr

save:
    pushq %rax
    pushq %rbx
    pushq %rcx
    pushq %rdx
    pushq %rsi
    pushq %rdi
    pushq %rbp
    pushq %r8
    pushq %r9
    pushq %r10
    pushq %r11
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    cld
    movq %rsp, %rdi
    movq %rsp, %rbx
    andq $-16, %rsp
    call on_trap
    movq %rbx, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %r11
    popq %r10
    popq %r9
    popq %r8
    popq %rbp
    popq %rdi
    popq %rsi
    popq %rdx
    popq %rcx
    popq %rbx
    popq %rax
    addq $16, %rsp
    iretq

# call_guarded(callback, data): calls callback(data). rax: 0, or 1 if a fault ended it, for which on_trap goes on at
# `rescued` with the stack pointer in `rescue`. Guarded calls may be nested.
    .macro enter
    pushq %rbx
    pushq %rbp
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    pushfq
    pushq rescue(%rip)
    movq %rsp, rescue(%rip)
    movq %rdi, %rax
    movq %rsi, %rdi
    .endm

    .global call_guarded, call_guarded_user, rescued, finished
call_guarded:
    enter
    subq $8, %rsp
    call *%rax
    addq $8, %rsp
finished:
    xorl %eax, %eax
    jmp 1f
rescued:
    movl $1, %eax
1:  movl $16, %ecx
    movl %ecx, %ds
    movl %ecx, %es
    popq rescue(%rip)
    popfq
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbp
    popq %rbx
    ret

# The same at CPL 3, on a stack of its own; vector 0x81 ends it at `finished`.
call_guarded_user:
    enter
    movq %rsp, task_state+4(%rip)   # RSP0
    pushq $0x33
    leaq user_stack_top(%rip), %rcx
    pushq %rcx
    pushfq
    pushq $0x3b
    leaq 2f(%rip), %rcx
    pushq %rcx
    iretq
2:  call *%rax
    int $0x81

    .section .data.traps, "aw", @progbits
    .global rescue, task_state
    .balign 16
rescue:
    .quad 0
    .balign 16
task_state:                         # RSP0 at 4, IST1 at 36; no port bitmap within the limit
    .skip 36
    .quad spare_stack_top
    .skip 58
    .word 104
task_state_end:

    .section .bss.traps, "aw", @nobits
    .balign 16
    .skip 16 * 1024
user_stack_top:
    .skip 8 * 1024
spare_stack_top:

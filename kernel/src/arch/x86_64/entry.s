# Entry to and exit from the kernel (AT&T syntax).
#
# Per-CPU data through GS: current thread at 8, kernel stack top at 16, scratch at 24 (see `cpu::Cpu`).
# A thread's saved registers start at the thread: general registers in encoding order at 8 * n, then
# (pad), vector 136, error 144, rip 152, cs 160, rflags 168, rsp 176, ss 184 (see `thread::reg`).
# `counted NAME` counts an instruction in a kernel that is built to count (see `arch::counting`).

    .section .text
    .code64

# syscall: number in rax, arguments rdi rsi rdx r10 r8 r9. Keeps what a blocked caller needs; the handlers
# (C calling convention, {status, value} in rax, rdx) preserve the callee-saved registers themselves.
    .macro syscall_path table
    swapgs
    movq %rsp, %gs:24
    movq %gs:8, %rsp
    movq %rbx, 24(%rsp)
    movq %rbp, 40(%rsp)
    movq %r12, 96(%rsp)
    movq %r13, 104(%rsp)
    movq %r14, 112(%rsp)
    movq %r15, 120(%rsp)
    movq %rcx, 152(%rsp)
    movq %r11, 168(%rsp)
    movq %gs:24, %r11
    movq %r11, 176(%rsp)
    movq %gs:16, %rsp
    counted SWAPGS
    cmpq $30, %rax
    jae 2f
    movq %r10, %rcx
    callq *\table(,%rax,8)
1:  movq %gs:8, %rcx
    movq 176(%rcx), %rsp
    movq 168(%rcx), %r11
    movq 152(%rcx), %rcx
    counted SWAPGS
    counted SYSRET
    xorl %edi, %edi
    xorl %esi, %esi
    xorl %r8d, %r8d
    xorl %r9d, %r9d
    xorl %r10d, %r10d
    swapgs
    sysretq
2:  movl $1, %eax
    xorl %edx, %edx
    jmp 1b
    .endm

    .balign 16
    .globl syscall_entry
syscall_entry:
    syscall_path syscall_table

# The same while a trace is taken: its handlers look for that.
    .balign 16
    .globl syscall_entry_traced
syscall_entry_traced:
    syscall_path syscall_table_traced

# return_from_syscall: thread in rdi, status in rax, value in rdx; as above for a thread that blocked.
    .balign 16
    .globl return_from_syscall
return_from_syscall:
    counted SWAPGS
    counted SYSRET
    movq 24(%rdi), %rbx
    movq 40(%rdi), %rbp
    movq 96(%rdi), %r12
    movq 104(%rdi), %r13
    movq 112(%rdi), %r14
    movq 120(%rdi), %r15
    movq 152(%rdi), %rcx
    movq 168(%rdi), %r11
    movq 176(%rdi), %rsp
    xorl %edi, %edi
    xorl %esi, %esi
    xorl %r8d, %r8d
    xorl %r9d, %r9d
    xorl %r10d, %r10d
    swapgs
    sysretq

# return_from_interrupt(thread): all registers.
    .balign 16
    .globl return_from_interrupt
return_from_interrupt:
    movq %rdi, %rsp
    popq %rax
    popq %rcx
    popq %rdx
    popq %rbx
    addq $8, %rsp
    popq %rbp
    popq %rsi
    popq %rdi
    popq %r8
    popq %r9
    popq %r10
    popq %r11
    popq %r12
    popq %r13
    popq %r14
    popq %r15
    addq $24, %rsp
    counted SWAPGS
    counted IRET
    swapgs
    iretq

# continue_vcpu(thread): the rest of a vcpu_run, on an empty kernel stack.
    .balign 16
    .globl continue_vcpu
continue_vcpu:
    movq %gs:16, %rsp
    callq vcpu_continued
    ud2

# One stub of 16 bytes per vector.
    .balign 16
    .globl interrupt_stubs
interrupt_stubs:
    .set vector, 0
    .rept 256
    .balign 16
    .if (vector == 8) || (vector >= 10 && vector <= 14) || (vector == 17) || (vector == 21) || (vector == 29) || (vector == 30)
    .else
    pushq $0
    .endif
    pushq $vector
    jmp interrupt_common
    .set vector, vector + 1
    .endr

# From ring 3 the processor pushed its frame into the thread itself (TSS.RSP0 is the end of its registers).
    .balign 16
interrupt_common:
    testb $3, 24(%rsp)
    jz 3f
    swapgs
    counted SWAPGS
    subq $8, %rsp
    pushq %r15
    pushq %r14
    pushq %r13
    pushq %r12
    pushq %r11
    pushq %r10
    pushq %r9
    pushq %r8
    pushq %rdi
    pushq %rsi
    pushq %rbp
    subq $8, %rsp
    pushq %rbx
    pushq %rdx
    pushq %rcx
    pushq %rax
    movq 136(%rsp), %rdi
    movq %gs:16, %rsp
    callq interrupt_from_user
    ud2

# From ring 0: the idle loop or the window after a guest. An exception here is a bug and does not return.
3:  pushq %rax
    pushq %rcx
    pushq %rdx
    pushq %rsi
    pushq %rdi
    pushq %r8
    pushq %r9
    pushq %r10
    pushq %r11
    movq 72(%rsp), %rdi
    leaq 72(%rsp), %rsi
    callq interrupt_from_kernel
    popq %r11
    popq %r10
    popq %r9
    popq %r8
    popq %rdi
    popq %rsi
    popq %rdx
    popq %rcx
    popq %rax
    addq $16, %rsp
    counted IRET
    iretq

# guest_run(gprs: rdi, vmcb: rsi, host_vmcb: rdx): one stay in the guest (AT&T syntax).
#
# gprs points to the guest's general registers in encoding order; rax and rsp are in the VMCB. Both blocks
# are physical addresses. Interrupts are off before and after; in the guest a physical interrupt causes an
# exit and stays pending (GIF is clear from the exit to STGI). APM vol. 2, 15.5 and 15.17.

    .section .text
    .code64
    .balign 16
    .globl guest_run
guest_run:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    pushq %rdx
    pushq %rdi
    clgi
    movq %rsi, %rax
    vmload %rax
    movq 8(%rdi), %rcx
    movq 16(%rdi), %rdx
    movq 24(%rdi), %rbx
    movq 40(%rdi), %rbp
    movq 48(%rdi), %rsi
    movq 64(%rdi), %r8
    movq 72(%rdi), %r9
    movq 80(%rdi), %r10
    movq 88(%rdi), %r11
    movq 96(%rdi), %r12
    movq 104(%rdi), %r13
    movq 112(%rdi), %r14
    movq 120(%rdi), %r15
    movq 56(%rdi), %rdi
    sti
    vmrun %rax
    cli
    vmsave %rax
    xchgq %rdi, (%rsp)
    movq %rcx, 8(%rdi)
    movq %rdx, 16(%rdi)
    movq %rbx, 24(%rdi)
    movq %rbp, 40(%rdi)
    movq %rsi, 48(%rdi)
    movq %r8, 64(%rdi)
    movq %r9, 72(%rdi)
    movq %r10, 80(%rdi)
    movq %r11, 88(%rdi)
    movq %r12, 96(%rdi)
    movq %r13, 104(%rdi)
    movq %r14, 112(%rdi)
    movq %r15, 120(%rdi)
    popq %rax
    movq %rax, 56(%rdi)
    popq %rax
    vmload %rax
    stgi
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    retq

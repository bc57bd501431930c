# guest_run(vcpu: rdi, vmcb: rsi, host_vmcb: rdx, gprs: rcx): one stay in the guest (AT&T syntax).
#
# Does not return: ends in guest_left(vcpu), on the stack as it was. gprs points to the guest's general
# registers in encoding order; rax and rsp are in the VMCB. Both blocks are physical addresses. The
# caller's registers are in its thread already. Interrupts are off before and after; in the guest a
# physical interrupt causes an exit and stays pending (GIF is clear from the exit to STGI). APM vol. 2,
# 15.5 and 15.17.

    .section .text
    .code64
    .balign 16
    .globl guest_run
guest_run:
    counted VMSAVE_LOAD
    counted VMSAVE_LOAD
    counted VMSAVE_LOAD
    counted VMRUN
    pushq %rdi
    pushq %rcx
    pushq %rdx
    clgi
    sti                             # well before: QEMU carries its shadow into the guest
    movq %rsi, %rax
    vmload %rax
    movq 16(%rcx), %rdx
    movq 24(%rcx), %rbx
    movq 40(%rcx), %rbp
    movq 48(%rcx), %rsi
    movq 56(%rcx), %rdi
    movq 64(%rcx), %r8
    movq 72(%rcx), %r9
    movq 80(%rcx), %r10
    movq 88(%rcx), %r11
    movq 96(%rcx), %r12
    movq 104(%rcx), %r13
    movq 112(%rcx), %r14
    movq 120(%rcx), %r15
    movq 8(%rcx), %rcx
    vmrun %rax
    cli
    vmsave %rax
    popq %rax
    vmload %rax
    popq %rax
    movq %rcx, 8(%rax)
    movq %rdx, 16(%rax)
    movq %rbx, 24(%rax)
    movq %rbp, 40(%rax)
    movq %rsi, 48(%rax)
    movq %rdi, 56(%rax)
    movq %r8, 64(%rax)
    movq %r9, 72(%rax)
    movq %r10, 80(%rax)
    movq %r11, 88(%rax)
    movq %r12, 96(%rax)
    movq %r13, 104(%rax)
    movq %r14, 112(%rax)
    movq %r15, 120(%rax)
    popq %rdi
    stgi
    callq guest_left
    ud2

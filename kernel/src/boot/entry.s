# First instructions (AT&T syntax): from 32-bit protected mode without paging to 64-bit Rust.
#
# Two ways in: PVH (ebx = hvm_start_info) and multiboot2 (eax = 0x36d76289, ebx = its information). Both
# give flat 32-bit segments and no paging. Maps the first 4 GiB three times: at 0, at the direct map, and
# (1 GiB) at the image's base. This code and its tables lie at their physical addresses.

    .set BASE, 0xffffffff80000000

    .section .boot.header, "a"
    .balign 8
multiboot_header:
    .long 0xe85250d6                    # magic
    .long 0                             # i386 protected mode
    .long multiboot_header_end - multiboot_header
    .long -(0xe85250d6 + 0 + (multiboot_header_end - multiboot_header))
    .balign 8
    .short 3, 0                         # entry address
    .long 12
    .long multiboot_entry
    .balign 8
    .short 6, 0                         # modules on page boundaries
    .long 8
    .balign 8
    .short 0, 0
    .long 8
multiboot_header_end:

    .section .note.Xen, "a", @note
    .balign 4
    .long 4, 8, 18                      # name size, descriptor size, XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .quad pvh_entry

    .section .boot.text, "ax"
    .code32
    .globl pvh_entry
pvh_entry:
    xorl %eax, %eax
    .globl multiboot_entry
multiboot_entry:
    cli
    cld
    movl %eax, boot_magic
    movl %ebx, boot_info
    rdtsc
    movl %eax, boot_tsc
    movl %edx, boot_tsc + 4

    movl $boot_directory, %edi          # 2048 pages of 2 MiB
    movl $0x83, %eax
    xorl %edx, %edx
1:  movl %eax, (%edi)
    movl %edx, 4(%edi)
    addl $8, %edi
    addl $0x200000, %eax
    jnc 1b
    movl $boot_directory + 0x0003, boot_pointers
    movl $boot_directory + 0x1003, boot_pointers + 8
    movl $boot_directory + 0x2003, boot_pointers + 16
    movl $boot_directory + 0x3003, boot_pointers + 24
    movl $boot_directory + 0x0003, boot_image_pointers + 510 * 8
    movl $boot_pointers + 3, boot_root
    movl $boot_pointers + 3, boot_root + 256 * 8
    movl $boot_image_pointers + 3, boot_root + 511 * 8

    movl $boot_root, %eax
    movl %eax, %cr3
    movl $0x20, %eax                    # PAE
    movl %eax, %cr4
    movl $0xc0000080, %ecx              # EFER: LME, NXE
    rdmsr
    orl $0x900, %eax
    wrmsr
    movl $0x80010001, %eax              # PG, WP, PE
    movl %eax, %cr0
    lgdt boot_gdt_pointer
    ljmp $8, $2f

    .code64
2:  xorl %eax, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movabsq $boot_stack_top, %rsp
    movl boot_magic, %edi
    movl boot_info, %esi
    movq boot_tsc, %rdx
    movabsq $kernel_start, %rax
    callq *%rax
    ud2

    .section .boot.data, "aw"
    .balign 4096
boot_root:
    .skip 4096
boot_pointers:
    .skip 4096
boot_image_pointers:
    .skip 4096
boot_directory:
    .skip 4 * 4096
    .balign 8
boot_gdt:
    .quad 0
    .quad 0x00af9a000000ffff
boot_gdt_pointer:
    .short 15
    .long boot_gdt
    .balign 8
boot_tsc:
    .quad 0
boot_magic:
    .long 0
boot_info:
    .long 0

    .section .bss
    .balign 16
    .skip 64 * 1024
boot_stack_top:

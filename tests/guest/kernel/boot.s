# Entry, descriptor tables and the ring-0 stub. Ring 0 does nothing but this: it uses integer
# instructions only, because some hosts run ring 0 in an emulator that knows no others.

    .section .note.pvh, "a"
    .balign 4
    .long 4, 4, 18              # name length, descriptor length, XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .long pvh_entry

    .section .text.boot, "ax"
    .code32
    .globl pvh_entry
pvh_entry:
    cli
    movl %ebx, start_info
    movl $pml4, %eax
    movl %eax, %cr3
    movl %cr4, %eax
    orl $0x620, %eax            # PAE, OSFXSR, OSXMMEXCPT
    movl %eax, %cr4
    movl $0xc0000080, %ecx
    rdmsr
    orl $0x100, %eax            # long mode
    wrmsr
    movl %cr0, %eax
    andl $0xfffffffb, %eax      # no x87 emulation
    orl $0x80000002, %eax       # paging, monitor coprocessor
    movl %eax, %cr0
    movl $tss, %eax
    movw %ax, gdt + 0x42
    shrl $16, %eax
    movb %al, gdt + 0x44
    movb %ah, gdt + 0x47
    lgdt gdt_pointer
    ljmpl $0x10, $long_entry

    .code64
long_entry:
    movl $0x18, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    xorl %eax, %eax
    movl %eax, %fs
    movl %eax, %gs
    movabsq $ring0_stack_top, %rsp
    movl $0x40, %eax
    ltr %ax
    lidt idt_pointer
    movl $0x2b, %eax
    movl %eax, %ds
    movl %eax, %es
    pushq $0x2b
    movabsq $ring3_stack_top - 8, %rax
    pushq %rax
    pushq $0x3202               # interrupts on, I/O privilege 3
    pushq $0x33
    movabsq $guest_main, %rax
    pushq %rax
    iretq

# Interrupts: count and acknowledge.
    .macro interrupt name, counter
    .balign 16
\name:
    pushq %rax
    incq \counter
    movl $0xfee000b0, %eax
    movl $0, (%rax)
    popq %rax
    iretq
    .endm
    interrupt irq_disk, irq_count
    interrupt irq_console, irq_count + 8

# Exceptions: note what happened and go on in ring 3 at `guest_exception`.
    .macro exception vector, has_error
    .balign 16
exception_\vector:
    .if \has_error == 0
    pushq $0
    .endif
    pushq $\vector
    jmp exception_common
    .endm
    .irp vector, 0,1,2,3,4,5,6,7,9,15,16,18,19,20,22,23,24,25,26,27,28,29,30,31
    exception \vector, 0
    .endr
    .irp vector, 8,10,11,12,13,14,17,21
    exception \vector, 1
    .endr
exception_common:
    movq %rax, exception_rax
    popq %rax
    movq %rax, exception_record
    popq %rax
    movq %rax, exception_record + 8
    movq (%rsp), %rax
    movq %rax, exception_record + 16
    movq %cr2, %rax
    movq %rax, exception_record + 24
    movabsq $guest_exception, %rax
    movq %rax, (%rsp)
    movq $0x33, 8(%rsp)
    movq $0x3002, 16(%rsp)
    movabsq $ring3_stack_top - 8, %rax
    movq %rax, 24(%rsp)
    movq $0x2b, 32(%rsp)
    iretq

# What Rust's core expects of its environment.
    .text
    .globl memcpy, memmove, memset, memcmp, bcmp
memcpy:
    movq %rdi, %rax
    movq %rdx, %rcx
    rep movsb
    ret
memmove:
    movq %rdi, %rax
    movq %rdx, %rcx
    movq %rdi, %r8
    subq %rsi, %r8
    cmpq %rdx, %r8
    jb 1f
    rep movsb
    ret
1:  leaq -1(%rdi,%rdx), %rdi
    leaq -1(%rsi,%rdx), %rsi
    std
    rep movsb
    cld
    ret
memset:
    movq %rdi, %r8
    movl %esi, %eax
    movq %rdx, %rcx
    rep stosb
    movq %r8, %rax
    ret
bcmp:
memcmp:
    xorl %eax, %eax
    testq %rdx, %rdx
    jz 2f
1:  movzbl (%rdi), %eax
    movzbl (%rsi), %ecx
    subl %ecx, %eax
    jnz 2f
    incq %rdi
    incq %rsi
    decq %rdx
    jnz 1b
2:  ret

    .section .rodata
    .balign 8
    .globl exception_table
exception_table:
    .irp vector, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
    .quad exception_\vector
    .endr
    .irp vector, 16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    .quad exception_\vector
    .endr

    .data
    .balign 4096
# 4 GiB mapped to itself in 2 MiB pages, open to ring 3; above 3 GiB uncached.
pml4:
    .quad pdpt + 7
    .fill 511, 8, 0
pdpt:
    .quad directories + 7, directories + 0x1007, directories + 0x2007, directories + 0x3007
    .fill 508, 8, 0
directories:
    .set page, 0
    .rept 1536
    .quad page + 0x87
    .set page, page + 0x200000
    .endr
    .rept 512
    .quad page + 0x9f
    .set page, page + 0x200000
    .endr

    .balign 16
gdt:
    .quad 0
    .quad 0
    .quad 0x00af9b000000ffff    # 0x10 ring 0 code
    .quad 0x00cf93000000ffff    # 0x18 ring 0 data
    .quad 0x00cffb000000ffff    # 0x20 ring 3 code, 32 bits
    .quad 0x00cff3000000ffff    # 0x28 ring 3 data
    .quad 0x00affb000000ffff    # 0x30 ring 3 code
    .quad 0
    .word 104 + 8192            # 0x40 task state
    .word 0                     # its address is put in at entry
    .byte 0
    .byte 0x89, 0
    .byte 0
    .quad 0
gdt_end:
gdt_pointer:
    .word gdt_end - gdt - 1
    .quad gdt
idt_pointer:
    .word 0x0fff
    .quad idt

    .balign 16
    .globl tss
tss:
    .long 0
    .quad ring0_stack_top
    .fill 90, 1, 0
    .word 104                   # the I/O permission bitmap: ring 3 may use every port
    .fill 8192, 1, 0
    .byte 0xff

    .globl start_info
start_info: .quad 0
    .globl irq_count
irq_count:  .quad 0, 0
    .globl exception_record
exception_record: .quad 0, 0, 0, 0
exception_rax: .quad 0

    .bss
    .balign 4096
    .globl idt
idt:
    .skip 4096
    .skip 16384
ring0_stack_top:
    .skip 262144
    .globl ring3_stack_top
ring3_stack_top:

/* Starts a program on an emulated Cortex-M: a stack, the floating-point unit, newlib's own start. */
#include <stdint.h>

extern uint32_t stack_top;
void _start(void);

static void reset(void)
{
    *(volatile uint32_t *)0xE000ED88 |= 0xFu << 20; /* CPACR: access to the floating-point unit */
    __asm volatile("dsb\n isb");
    _start();
}

static void fault(void)
{
    __asm volatile("mov r0, #0x18\n ldr r1, =0x20023\n bkpt 0xab"); /* semihosting: abort */
    for (;;)
        ;
}

__attribute__((section(".vectors"), used)) static void *const vectors[16] = {
    &stack_top, (void *)reset, (void *)fault, (void *)fault, (void *)fault, (void *)fault, (void *)fault,
};

/*
 * The embedded placeholder: the first process of a buddy, and the only file of its image.
 *
 * It holds the namespaces that function containers join, and does nothing else: it reaps the orphans of those that share its pid
 * namespace, and ends with code 0 on SIGTERM or SIGINT, at once. Between signals it sleeps in one system call, without a timer.
 * With the argument "exit" it ends at once with code 0: the shortest function there is, for `nspool demo` and `nspool bench`.
 *
 * Told to, it moves into a new network namespace (RENEW, below). It begins at use 1, and is told the number of the use that it makes ready:
 * 2, then 3, and no other. So an order that is repeated, late or meant for somebody else does nothing. The number is one of 64 bits, kept in
 * its memory alone; it does not come round in the life of a machine.
 *
 * It needs no libc, no file system, no /proc, no memory beyond its stack, and only four system calls, all of which the default seccomp profiles
 * of Docker and podman let through: rt_sigprocmask, rt_sigtimedwait, wait4, exit_group. Renewal alone needs a fifth, unshare, and the
 * capability SYS_ADMIN for it; `seccomp.rs` has the profile.
 *
 * What can go wrong: a seccomp profile, or a missing capability, that refuses one of those. It then ends with a code of its own (below) rather
 * than turn in a loop: a buddy that ends is replaced and said, one that burns a processor is neither. Whoever is in the same pid namespace
 * and may signal it can forge an order, the kernel takes their word for who they are: a renewable buddy shares its pid namespace with nobody.
 */

#if defined(__x86_64__)
enum { NR_rt_sigprocmask = 14, NR_wait4 = 61, NR_rt_sigtimedwait = 128, NR_exit_group = 231, NR_unshare = 272 };

__asm__(".globl _start\n"
        "_start:\n"
        "    xor %ebp, %ebp\n"
        "    mov %rsp, %rdi\n"
        "    and $-16, %rsp\n"
        "    call placeholder\n");

static long system_call(long number, long a, long b, long c, long d)
{
    register long r10 __asm__("r10") = d;
    long result;

    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "0"(number), "D"(a), "S"(b), "d"(c), "r"(r10)
                     : "rcx", "r11", "memory");
    return result;
}
#elif defined(__aarch64__)
enum { NR_exit_group = 94, NR_unshare = 97, NR_rt_sigprocmask = 135, NR_rt_sigtimedwait = 137, NR_wait4 = 260 };

__asm__(".globl _start\n"
        "_start:\n"
        "    mov x29, #0\n"
        "    mov x30, #0\n"
        "    mov x0, sp\n"
        "    bl placeholder\n");

static long system_call(long number, long a, long b, long c, long d)
{
    register long x8 __asm__("x8") = number;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d;

    __asm__ volatile("svc #0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3) : "memory");
    return x0;
}
#else
#error "the placeholder is written for x86_64 and aarch64"
#endif

/* The kernel's own numbers and layouts, the same on both architectures. */
enum { SIGINT = 2, SIGTERM = 15, SIGCHLD = 17 };
enum { SIG_BLOCK = 0, WNOHANG = 1, EINTR = 4 };
enum { SI_QUEUE = -1, CLONE_NEWNET = 0x40000000 };
typedef unsigned long signal_set; /* 64 signals, one bit each: what the kernel calls sigset_t */

#define BIT(signal) (1UL << ((signal) - 1))

/* What comes with a queued signal: the kernel writes 128 bytes of siginfo_t, of which these are the first. */
struct signal_info {
    int signal, error, code, gap;
    int pid; /* of the sender, as seen from here: 0 is outside this pid namespace */
    unsigned int uid;
    unsigned long value;
    char rest[96];
};
_Static_assert(sizeof(struct signal_info) == 128, "the kernel would write past it");

/* The kernel's SIGRTMIN (32, before a libc takes some for itself) and ten. Also in netns/linux/renewal.rs. */
enum { RENEW = 42 };

/* Exit codes that say which system call was refused. */
enum { CANNOT_BLOCK = 101, CANNOT_WAIT = 102, CANNOT_RENEW = 103 };

static _Noreturn void leave(int code)
{
    for (;;)
        system_call(NR_exit_group, code, 0, 0, 0);
}

/* Takes every child that has ended: one SIGCHLD may stand for many. */
static void reap(void)
{
    while (system_call(NR_wait4, -1, 0, WNOHANG, 0) > 0)
        ;
}

/* An order is queued (kill() and tgkill() carry no number), comes from outside the pid namespace, and names the use that is next. */
static int is_order(const struct signal_info *info, unsigned long next)
{
    return info->code == SI_QUEUE && info->pid == 0 && info->value == next;
}

static int is_exit(const char *word)
{
    return word[0] == 'e' && word[1] == 'x' && word[2] == 'i' && word[3] == 't' && word[4] == 0;
}

/*
 * The kernel starts a program with the number of its arguments on the stack, and pointers to them above; the first one is its name.
 *
 * Pid 1 gets no signal that it has no handler for, unless the signal is blocked: a blocked one is always kept for it. So all four are
 * blocked and taken one by one, and there is no handler, no race between a look and a sleep, and nothing to be interrupted.
 */
__attribute__((used)) _Noreturn void placeholder(const long *stack)
{
    const signal_set awaited = BIT(SIGINT) | BIT(SIGTERM) | BIT(SIGCHLD) | BIT(RENEW);
    unsigned long use = 1;

    if (stack[0] > 1 && is_exit((const char *)stack[2]))
        leave(0);
    if (system_call(NR_rt_sigprocmask, SIG_BLOCK, (long)&awaited, 0, sizeof awaited) < 0)
        leave(CANNOT_BLOCK);
    for (;;) {
        /* The lowest number is taken first, so an end is never kept waiting by children or orders. */
        struct signal_info info;
        long signal = system_call(NR_rt_sigtimedwait, (long)&awaited, (long)&info, 0, sizeof awaited);

        if (signal == SIGTERM || signal == SIGINT)
            leave(0);
        if (signal == SIGCHLD)
            reap();
        else if (signal == RENEW) {
            if (!is_order(&info, use + 1))
                continue;
            if (system_call(NR_unshare, CLONE_NEWNET, 0, 0, 0) < 0)
                leave(CANNOT_RENEW);
            use++;
        } else if (signal != -EINTR) /* which a SIGSTOP, a SIGCONT or a tracer brings about */
            leave(CANNOT_WAIT);
    }
}

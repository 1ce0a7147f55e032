/* What LD_PRELOAD brings into every dynamic program: seen in its output, and the end of one that runs as root. */
#include <stdlib.h>
#include <unistd.h>

__attribute__((constructor)) static void loaded(void) {
    static const char message[] = "evil.so was loaded\n";
    (void)!write(2, message, sizeof message - 1);
    if (getuid() == 0 || geteuid() == 0) abort();
}

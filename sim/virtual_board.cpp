// The virtual board: the board's top in Verilator, its UART pins on a pseudo-terminal.
//
//   virtual_board [--link PATH]
//
// Prints the terminal's path. The terminal may be closed and opened again at will. SIGTERM and SIGINT end it.
// The build defines IO_HZ, SYNC_HZ (Hz) and DIVISOR (io cycles a bit).

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <termios.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <memory>

#include "pins.h"
#include "verilated.h"

static volatile sig_atomic_t stop = 0;
static void on_signal(int) { stop = 1; }

static int fail(const char* what) {
    fprintf(stderr, "virtual board: %s: %s\n", what, strerror(errno));
    return 1;
}

int main(int argc, char** argv) {
    const char* link = nullptr;
    for (int at = 1; at < argc; at++) {
        if (!strcmp(argv[at], "--link") && at + 1 < argc) {
            link = argv[++at];
        } else {
            fprintf(stderr, "usage: %s [--link PATH]\n", argv[0]);
            return 2;
        }
    }
    struct sigaction action = {};
    action.sa_handler = on_signal;
    sigaction(SIGTERM, &action, nullptr);
    sigaction(SIGINT, &action, nullptr);

    const int master = posix_openpt(O_RDWR | O_NOCTTY | O_NONBLOCK);
    if (master < 0 || grantpt(master) || unlockpt(master)) return fail("no pseudo-terminal");
    const char* path = ptsname(master);
    const int slave = open(path, O_RDWR | O_NOCTTY);  // kept open, so that a host that leaves does not hang the terminal up
    if (slave < 0) return fail(path);
    struct termios raw;
    tcgetattr(slave, &raw);
    cfmakeraw(&raw);
    tcsetattr(slave, TCSANOW, &raw);
    if (link) {
        unlink(link);
        if (symlink(path, link)) return fail(link);
    }
    printf("%s\n", path);
    fflush(stdout);

    const auto context = std::make_unique<VerilatedContext>();
    context->randReset(2);
    const auto model = std::make_unique<Vtop>(context.get());
    top = model.get();
    top->rx = 1;
    top->eval();

    Sender sender;
    Receiver receiver;
    std::deque<uint8_t> answers;
    Clocks clocks;
    uint64_t io_cycles = 0, quiet = 0;
    while (!stop) {
        if (!clocks.tick()) continue;

        io_cycles++;
        sender.tick();
        const int byte = receiver.tick();
        if (byte >= 0) answers.push_back(uint8_t(byte));
        quiet = top->busy || !sender.idle() || !receiver.idle() ? 0 : quiet + 1;
        const bool sleeping = quiet > 30 * DIVISOR;  // three byte times: nothing can be under way between the pins
        if (!sleeping && io_cycles % 1024 != 0) continue;

        while (!answers.empty()) {  // a host that does not read loses what the terminal cannot hold
            uint8_t block[4096];
            size_t size = 0;
            while (size < sizeof block && !answers.empty()) {
                block[size++] = answers.front();
                answers.pop_front();
            }
            if (write(master, block, size) < 0 && errno != EAGAIN && errno != EINTR) return fail("write");
        }
        if (sleeping) {
            struct pollfd wait = {master, POLLIN, 0};
            poll(&wait, 1, 200);
        }
        if (sender.bytes.size() < 4096) {
            uint8_t block[4096];
            const ssize_t size = read(master, block, sizeof block);
            for (ssize_t at = 0; at < size; at++) sender.bytes.push_back(block[at]);
            if (size < 0 && errno != EAGAIN && errno != EINTR && errno != EIO) return fail("read");
        }
    }
    model->final();
    if (link) unlink(link);
    close(slave);
    close(master);
    return 0;
}

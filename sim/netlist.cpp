// A board without a terminal: requests from a file, answers to a file, the same in every run.
//
//   netlist REQUESTS ANSWERS PATIENCE
//
// REQUESTS holds frames, each behind its length (two bytes, the low one first); at most two are under way. ANSWERS takes what comes out
// of tx. It ends when there are as many answers as requests, or when the next one has not come for PATIENCE cycles of io.
// The build defines IO_HZ, SYNC_HZ (Hz), DIVISOR (io cycles a bit) and START (io cycles before the first request).

#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "pins.h"
#include "verilated.h"

static const unsigned WINDOW = 2;  // images that any board has room for
static const int FLAG = 0x7E;

int main(int argc, char** argv) {
    FILE* const requests = argc == 4 ? fopen(argv[1], "rb") : nullptr;
    FILE* const answers = requests ? fopen(argv[2], "wb") : nullptr;
    if (!answers) {
        fprintf(stderr, "usage: %s REQUESTS ANSWERS PATIENCE\n", argv[0]);
        return 2;
    }
    const uint64_t patience = strtoull(argv[3], nullptr, 10);
    const auto context = std::make_unique<VerilatedContext>();
    context->randReset(2);
    context->randSeed(1);
    const auto model = std::make_unique<Vtop>(context.get());
    top = model.get();
    top->rx = 1;
    top->eval();

    Sender sender;
    Receiver receiver;
    Clocks clocks;
    uint64_t io_cycles = 0, heard = START;  // heard: when an answer ended, or something was sent
    unsigned asked = 0, answered = 0;
    bool more = true, inside = false;
    while (more || answered < asked) {
        if (!clocks.tick()) continue;
        io_cycles++;
        if (more && io_cycles >= START && asked - answered < WINDOW && sender.idle()) {
            uint8_t size[2], frame[1 << 16];
            more = fread(size, 1, 2, requests) == 2;
            const size_t length = more ? fread(frame, 1, size[0] | size[1] << 8, requests) : 0;
            sender.bytes.insert(sender.bytes.end(), frame, frame + length);
            asked += more;
        }
        sender.tick();
        const int byte = receiver.tick();
        if (byte >= 0) {
            fputc(byte, answers);
            if (byte == FLAG && inside) {
                answered++;
                heard = io_cycles;
            }
            inside = byte != FLAG;
        }
        if (!sender.idle()) heard = io_cycles;
        if (io_cycles > heard + patience) break;
    }
    model->final();
    fclose(requests);
    return fclose(answers) != 0;
}

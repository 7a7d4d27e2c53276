// A board's UART pins from the other side, and its clocks. The build defines IO_HZ, SYNC_HZ (Hz) and DIVISOR (io cycles a bit).

#pragma once

#include <cstdint>
#include <cstdio>
#include <deque>

#include "Vtop.h"

static Vtop* top;

// Host to board: start bit, eight bits, stop bit, on top->rx.
struct Sender {
    std::deque<uint8_t> bytes;
    unsigned bits = 0, left = 0, timer = 0;  // bits still to send, how many, io cycles of this bit
    bool idle() const { return bytes.empty() && left == 0 && timer == 0; }
    void tick() {
        if (timer) {
            timer--;
            return;
        }
        if (left == 0) {
            if (bytes.empty()) return;
            bits = (bytes.front() << 1) | 0x200;
            bytes.pop_front();
            left = 10;
        }
        top->rx = bits & 1;
        bits >>= 1;
        left--;
        timer = DIVISOR - 1;
    }
};

// Board to host: sampled in the middle of each bit of top->tx.
struct Receiver {
    unsigned bits = 0, left = 0, timer = 0;
    bool idle() const { return left == 0; }
    int tick() {  // a byte, or -1
        if (left == 0) {
            if (!top->tx) {
                left = 10;
                bits = 0;
                timer = DIVISOR / 2;
            }
            return -1;
        }
        if (timer) {
            timer--;
            return -1;
        }
        timer = DIVISOR - 1;
        bits |= unsigned(top->tx) << (10 - left);
        if (--left) return -1;
        if (!(bits & 0x200)) fprintf(stderr, "virtual board: no stop bit on tx\n");
        return (bits >> 1) & 0xFF;
    }
};

// Time to the next edge of each clock, in units in which io's half period is SYNC_HZ and sync's is IO_HZ.
struct Clocks {
    uint64_t to_io = SYNC_HZ, to_sync = IO_HZ;
    bool tick() {  // to the next edge; whether io rose
        const uint64_t step = to_io < to_sync ? to_io : to_sync;
        to_io -= step;
        to_sync -= step;
        bool rose = false;
        if (to_io == 0) {
            top->io_clk = !top->io_clk;
            rose = top->io_clk;
            to_io = SYNC_HZ;
        }
        if (to_sync == 0) {
            top->clk = !top->clk;
            to_sync = IO_HZ;
        }
        top->eval();
        return rose;
    }
};

// The board's top as CXXRTL makes it of the gates, its UART pins and every bit of its state within reach; see sim/compiled.py.
// DESIGN is the file that yosys wrote; DIVISOR the io cycles a bit.

#include DESIGN

#include <cstdint>
#include <deque>
#include <string>
#include <vector>

struct Part {
    std::string name;
    cxxrtl::debug_item item;
};

struct Board {
    cxxrtl_design::p_top top;
    std::vector<Part> parts;
    uint64_t io_half, sync_half, to_io, to_sync;  // to the clocks' next rising edges; io's period is sync's frequency and the reverse
    std::deque<uint8_t> to_send;
    unsigned send_bits = 0, send_left = 0, send_timer = 0;
    unsigned got_bits = 0, got_left = 0, got_timer = 0;

    Board(uint64_t io_hz, uint64_t sync_hz) : io_half(sync_hz), sync_half(io_hz), to_io(sync_hz), to_sync(io_hz) {
        cxxrtl::debug_items items;
        top.debug_info(&items, nullptr, "");
        for (auto &entry : items.table)
            for (auto &item : entry.second)
                if (item.type == CXXRTL_MEMORY || (item.type == CXXRTL_WIRE && (item.flags & CXXRTL_DRIVEN_SYNC)))
                    parts.push_back({entry.first, item});
        top.p_rx.set<bool>(true);
        top.step();
    }

    void send() {
        if (send_timer) {
            send_timer--;
            return;
        }
        if (send_left == 0) {
            if (to_send.empty()) return;
            send_bits = (to_send.front() << 1) | 0x200;
            to_send.pop_front();
            send_left = 10;
        }
        top.p_rx.set<bool>(send_bits & 1);
        send_bits >>= 1;
        send_left--;
        send_timer = DIVISOR - 1;
    }

    int receive() {  // a byte, or -1; one without a stop bit counts as 0xFF
        const bool level = top.p_tx.get<uint8_t>();
        if (got_left == 0) {
            if (!level) got_left = 10, got_bits = 0, got_timer = DIVISOR / 2;
            return -1;
        }
        if (got_timer) {
            got_timer--;
            return -1;
        }
        got_timer = DIVISOR - 1;
        got_bits |= unsigned(level) << (10 - got_left);
        if (--got_left) return -1;
        return got_bits & 0x200 ? (got_bits >> 1) & 0xFF : 0xFF;
    }
};

extern "C" {

void *board_new(uint64_t io_hz, uint64_t sync_hz) { return new Board(io_hz, sync_hz); }
void board_free(void *board) { delete static_cast<Board *>(board); }
size_t board_parts(void *board) { return static_cast<Board *>(board)->parts.size(); }

const char *board_part(void *board, size_t index, size_t *width, size_t *depth) {
    const Part &part = static_cast<Board *>(board)->parts[index];
    *width = part.item.width;
    *depth = part.item.depth;
    return part.name.c_str();
}

void board_flip(void *board, size_t index, size_t row, size_t bit) {
    const cxxrtl::debug_item &item = static_cast<Board *>(board)->parts[index].item;
    const size_t at = row * ((item.width + 31) / 32) + bit / 32;
    item.curr[at] ^= uint32_t(1) << bit % 32;
    if (item.type == CXXRTL_WIRE) item.next[at] ^= uint32_t(1) << bit % 32;
}

void board_send(void *board, const uint8_t *bytes, size_t size) {
    auto &queue = static_cast<Board *>(board)->to_send;
    queue.insert(queue.end(), bytes, bytes + size);
}

bool board_busy(void *board) { return static_cast<Board *>(board)->top.p_busy.get<uint8_t>(); }

// Run for `cycles` io cycles, or until `flags` bytes 7E have come behind other bytes. What came goes to `out`, its size is returned.
size_t board_run(void *handle, uint64_t cycles, size_t flags, uint8_t *out, size_t room, uint64_t *spent) {
    Board &board = *static_cast<Board *>(handle);
    size_t size = 0;
    bool some = false;
    for (*spent = 0; *spent < cycles && flags && size < room;) {
        const uint64_t step = std::min(board.to_io, board.to_sync);
        board.to_io -= step;
        board.to_sync -= step;
        const bool io = board.to_io == 0, sync = board.to_sync == 0;
        if (io) {
            board.send();
            board.to_io = 2 * board.io_half;
        }
        if (sync) board.to_sync = 2 * board.sync_half;
        board.top.p_io__clk.set<bool>(io);
        board.top.p_clk.set<bool>(sync);
        board.top.step();
        board.top.p_io__clk.set<bool>(false);
        board.top.p_clk.set<bool>(false);
        board.top.commit();
        if (!io) continue;
        ++*spent;
        const int byte = board.receive();
        if (byte < 0) continue;
        out[size++] = uint8_t(byte);
        if (byte == 0x7E && some) flags--;
        some = byte != 0x7E;
    }
    return size;
}
}

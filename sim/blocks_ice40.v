// The SPRAM of an iCE40 UP5K (Lattice FPGA-TN-02022), neither on standby nor asleep. Its contents are unknown at first; while it
// writes, what it gives is not defined: here, the opposite of what it gave.
module SB_SPRAM256KA (
    input [13:0] ADDRESS,
    input [15:0] DATAIN,
    input [3:0] MASKWREN,
    input WREN, CHIPSELECT, CLOCK, STANDBY, SLEEP, POWEROFF,
    output reg [15:0] DATAOUT
);
    reg [15:0] mem [0:16383];
    integer i;
    initial for (i = 0; i < 16384; i = i + 1) mem[i] = $urandom;
    wire [15:0] mask = {{4{MASKWREN[3]}}, {4{MASKWREN[2]}}, {4{MASKWREN[1]}}, {4{MASKWREN[0]}}};
    always @(posedge CLOCK) if (CHIPSELECT) begin
        if (WREN) mem[ADDRESS] <= DATAIN & mask | mem[ADDRESS] & ~mask;
        DATAOUT <= WREN ? ~DATAOUT : mem[ADDRESS];
    end
endmodule

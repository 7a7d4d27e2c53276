// Blocks of an ECP5, as far as yosys makes use of them. Ports of many bits are vectors here, and the block RAM's contents one parameter.

// Block RAM: 2048 words of 9 bits, or 4, 2, 1 without the ninth, or two or four together (Lattice FPGA-TN-02204). With 36 bits, port A
// writes and B reads, the upper half by way of DIB and DOB. ADA's lowest bits are byte enables where a write is of more than a byte.
// Of two ports at one place, one writing, the other gets what was there before; no design of ours looks at it.
module DP16KD (
    input [17:0] DIA, DIB,
    input [13:0] ADA, ADB,
    input [2:0] CSA, CSB,
    input CEA, OCEA, CLKA, WEA, RSTA, CEB, OCEB, CLKB, WEB, RSTB,
    output reg [17:0] DOA, DOB
);
    parameter [64*320-1:0] INIT = 0;  // 1024 words of 18 bits, each in 20
    parameter DATA_WIDTH_A = 18, DATA_WIDTH_B = 18, WRITEMODE_A = "NORMAL", WRITEMODE_B = "NORMAL";

    reg [8:0] mem [0:2047];
    integer i;
    initial begin
        for (i = 0; i < 1024; i = i + 1) {mem[2*i+1], mem[2*i]} = INIT[20*i +: 18];
        DOA = 0;
        DOB = 0;
    end

    function [35:0] read(input [13:0] at, input integer width);
        case (width)
            36: read = {mem[{at[13:5], 2'd3}], mem[{at[13:5], 2'd2}], mem[{at[13:5], 2'd1}], mem[{at[13:5], 2'd0}]};
            18: read = {mem[{at[13:4], 1'b1}], mem[{at[13:4], 1'b0}]};
            9: read = mem[at[13:3]];
            4: read = mem[at[13:3]][4*at[2] +: 4];
            2: read = mem[at[13:3]][2*at[2:1] +: 2];
            default: read = mem[at[13:3]][at[2:0]];
        endcase
    endfunction

    task write(input [13:0] at, input integer width, input [35:0] data);
        case (width)
            36: begin
                if (at[0]) mem[{at[13:5], 2'd0}] <= data[8:0];
                if (at[1]) mem[{at[13:5], 2'd1}] <= data[17:9];
                if (at[2]) mem[{at[13:5], 2'd2}] <= data[26:18];
                if (at[3]) mem[{at[13:5], 2'd3}] <= data[35:27];
            end
            18: begin
                if (at[0]) mem[{at[13:4], 1'b0}] <= data[8:0];
                if (at[1]) mem[{at[13:4], 1'b1}] <= data[17:9];
            end
            9: mem[at[13:3]] <= data[8:0];
            4: mem[at[13:3]][4*at[2] +: 4] <= data[3:0];
            2: mem[at[13:3]][2*at[2:1] +: 2] <= data[1:0];
            default: mem[at[13:3]][at[2:0]] <= data[0];
        endcase
    endtask

    always @(posedge CLKA)
        if (RSTA) DOA <= 0;
        else if (CEA && CSA == 0) begin
            if (WEA) write(ADA, DATA_WIDTH_A, {DIB, DIA});
            if (DATA_WIDTH_B != 36 && DATA_WIDTH_A != 36)
                if (!WEA || WRITEMODE_A == "READBEFOREWRITE") DOA <= read(ADA, DATA_WIDTH_A);
                else if (WRITEMODE_A == "WRITETHROUGH") DOA <= DIA;
        end

    always @(posedge CLKB)
        if (RSTB) begin
            DOB <= 0;
            if (DATA_WIDTH_B == 36) DOA <= 0;
        end else if (CEB && CSB == 0) begin
            if (WEB) write(ADB, DATA_WIDTH_B, {18'b0, DIB});
            if (DATA_WIDTH_B == 36) {DOB, DOA} <= read(ADB, 36);
            else if (!WEB || WRITEMODE_B == "READBEFOREWRITE") DOB <= read(ADB, DATA_WIDTH_B);
            else if (WRITEMODE_B == "WRITETHROUGH") DOB <= DIB;
        end
endmodule

// Multiplier without registers (Lattice FPGA-TN-02205).
module MULT18X18D (input [17:0] A, B, input SIGNEDA, SIGNEDB, output [35:0] P);
    assign P = $signed({{18{SIGNEDA & A[17]}}, A}) * $signed({{18{SIGNEDB & B[17]}}, B});
endmodule

// A RAM of LUTs: written at a clock's edge, read at once.
module TRELLIS_DPR16X4 (input [3:0] DI, WAD, RAD, input WRE, WCK, output [3:0] DO);
    parameter [63:0] INITVAL = 0;
    reg [3:0] mem [0:15];
    integer i;
    initial for (i = 0; i < 16; i = i + 1) mem[i] = INITVAL[4*i +: 4];
    always @(posedge WCK) if (WRE) mem[WAD] <= DI;
    assign DO = mem[RAD];
endmodule

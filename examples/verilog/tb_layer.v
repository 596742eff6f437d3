// Runs one exported layer by its memory images and compares with the integer convolution.
//
// One output position, all tiles one after the other; the sums of the crossbars are exact (no
// converters). For layers with packed slices on pairs of crossbars, one crossbar group.
// `export_layer.py` writes the images and `params.vh`; docs/datapath.md has the layouts.

`timescale 1ns / 1ps

module tb_layer;
  `include "params.vh"

  localparam OFAT_RECORD = 3 + OFAT_LEADER_BITS + OFAT_COLUMN_BITS + OFAT_OUTPUT_BITS;
  localparam IFAT_RECORD = 1 + IFAT_INPUT_BITS;
  localparam CONTROL_RECORD = 1 + CONTROL_LEADER_BITS;
  localparam SLABS = IFAT_COUNT / IFRT_COUNT;

  // What is read from files.
  reg [IFAT_WIDTH-1:0] ifat[0:SLOTS-1];
  reg [IFRT_WIDTH-1:0] ifrt[0:SLOTS-1];
  reg [CONTROL_WIDTH-1:0] control[0:SLOTS-1];
  reg [OFAT_WIDTH-1:0] ofat[0:SLOTS*WORDS_PER_SLOT-1];
  reg [COLUMNS*CELL_BITS-1:0] positive[0:ROWS-1];
  reg [COLUMNS*CELL_BITS-1:0] negative[0:ROWS-1];
  reg [2*OFAT_OUTPUT_BITS-1:0] replicas[0:(REPLICAS > 0 ? REPLICAS : 1)-1];
  reg [ACTIVATION_BITS-1:0] inputs[0:IN_CHANNELS*KERNEL_H*KERNEL_W-1];
  reg signed [SUM_BITS-1:0] expected[0:OUT_CHANNELS-1];

  // What is computed.
  integer word_lines[0:ROWS-1];
  integer sums[0:SLOTS*PES*EPITOME_OUT-1];  // of a slot, of a leading PE, of an epitome channel
  integer outputs[0:OUT_CHANNELS-1];
  integer partial[0:OUT_CHANNELS-1];  // the tile's output buffer

  integer tile, pe, crossbar, slot, lane, slab, row, column, i, j, k, driver, first, leader;
  integer cell_index, epitome_channel, shift, difference, errors, finished, field;
  reg [IFAT_RECORD-1:0] fetched;
  reg [IFRT_LINE_BITS-1:0] line;
  reg [CONTROL_RECORD-1:0] work;
  reg [OFAT_RECORD-1:0] result;
  reg [OFAT_LEADER_BITS-1:0] result_leader;
  reg [OFAT_COLUMN_BITS-1:0] result_column;
  reg [OFAT_OUTPUT_BITS-1:0] result_output, copy_source, copy_target;
  reg [8*512-1:0] name;

  // The driver of a PE: its own where rounds share slots, else that of its row group in the tile.
  function integer driver_of(input integer of_tile, input integer of_pe);
    integer begin_group, group;
    begin
      begin_group = (of_tile * PES) % ROW_GROUPS;
      group = (of_tile * PES + of_pe) % ROW_GROUPS;
      driver_of = OWN_DRIVERS ? of_pe : (group - begin_group + ROW_GROUPS) % ROW_GROUPS;
    end
  endfunction

  task drive_word_lines;
    begin
      for (row = 0; row < ROWS; row = row + 1) word_lines[row] = 0;
      for (lane = 0; lane < LANES; lane = lane + 1) begin
        k = driver * LANES + lane;
        line = ifrt[slot] >> (k * IFRT_LINE_BITS);
        for (slab = 0; slab < SLABS; slab = slab + 1) begin
          fetched = ifat[slot] >> ((k * SLABS + slab) * IFAT_RECORD);
          if (fetched[0])
            for (i = 0; i < KERNEL_H; i = i + 1)
              for (j = 0; j < KERNEL_W; j = j + 1) begin
                row = line + i * EPITOME_W + j;
                field = (fetched >> 1) * KERNEL_H * KERNEL_W + i * KERNEL_W + j;
                word_lines[row] = word_lines[row] + inputs[field];
              end
        end
      end
    end
  endtask

  // Every column of a crossbar: the difference of the pair, shifted by its slice.
  task convert_columns;
    begin
      for (column = 0; column < COLUMNS; column = column + 1) begin
        cell_index = (crossbar / ROW_GROUPS) * COLUMNS + column;
        epitome_channel = cell_index / COLUMNS_PER_OUTPUT;
        shift = (cell_index % COLUMNS_PER_OUTPUT) * CELL_BITS;
        if (epitome_channel < EPITOME_OUT) begin
          difference = 0;
          for (row = 0; row < ROWS; row = row + 1)
            difference = difference
                + word_lines[row] * positive[row][column*CELL_BITS+:CELL_BITS]
                - word_lines[row] * negative[row][column*CELL_BITS+:CELL_BITS];
          k = (slot * PES + leader) * EPITOME_OUT + epitome_channel;
          sums[k] = sums[k] + difference * (1 << shift);
        end
      end
    end
  endtask

  task write_results;
    begin
      for (i = 0; i < WORDS_PER_SLOT * OFAT_COUNT; i = i + 1) begin
        result = ofat[slot*WORDS_PER_SLOT+i/OFAT_COUNT] >> ((i % OFAT_COUNT) * OFAT_RECORD);
        result_leader = result >> 3;
        result_column = result >> (3 + OFAT_LEADER_BITS);
        result_output = result >> (3 + OFAT_LEADER_BITS + OFAT_COLUMN_BITS);
        if (result[0]) begin
          if (result[1]) partial[result_output] = 0;
          k = (slot * PES + result_leader) * EPITOME_OUT + result_column;
          partial[result_output] = partial[result_output] + sums[k];
          if (result[2]) outputs[result_output] = outputs[result_output] + partial[result_output];
        end
      end
    end
  endtask

  initial begin
    $readmemh({`FOLDER, "/inputs.hex"}, inputs);
    $readmemh({`FOLDER, "/expected.hex"}, expected);
    for (i = 0; i < OUT_CHANNELS; i = i + 1) outputs[i] = 0;

    for (tile = 0; tile < TILES; tile = tile + 1) begin
      $sformat(name, "%0s/tile%03d/ifat.hex", `LAYER, tile);
      $readmemh(name, ifat);
      $sformat(name, "%0s/tile%03d/ifrt.hex", `LAYER, tile);
      $readmemh(name, ifrt);
      $sformat(name, "%0s/tile%03d/control.hex", `LAYER, tile);
      $readmemh(name, control);
      $sformat(name, "%0s/tile%03d/ofat.hex", `LAYER, tile);
      $readmemh(name, ofat);
      for (i = 0; i < SLOTS * PES * EPITOME_OUT; i = i + 1) sums[i] = 0;

      for (pe = 0; pe < PES && tile * PES + pe < CROSSBARS; pe = pe + 1) begin
        crossbar = tile * PES + pe;
        driver = driver_of(tile, pe);
        $sformat(name, "%0s/tile%03d/pe%0d.group0.positive.hex", `LAYER, tile, pe);
        $readmemh(name, positive);
        $sformat(name, "%0s/tile%03d/pe%0d.group0.negative.hex", `LAYER, tile, pe);
        $readmemh(name, negative);
        for (slot = 0; slot < SLOTS; slot = slot + 1) begin
          work = control[slot] >> (pe * CONTROL_RECORD);
          leader = work >> 1;
          if (work[0]) begin
            drive_word_lines;
            convert_columns;
          end
        end
      end
      for (slot = 0; slot < SLOTS; slot = slot + 1) write_results;
    end

    if (REPLICAS > 0) begin
      $readmemh({`LAYER, "/replicas.hex"}, replicas);
      for (i = 0; i < REPLICAS; i = i + 1) begin
        copy_source = replicas[i];
        copy_target = replicas[i] >> OFAT_OUTPUT_BITS;
        outputs[copy_target] = outputs[copy_source];
      end
    end

    errors = 0;
    for (i = 0; i < OUT_CHANNELS; i = i + 1)
      if (outputs[i] !== expected[i]) begin
        errors = errors + 1;
        $display("output %0d: got %0d, expected %0d", i, outputs[i], expected[i]);
      end
    if (errors == 0) $display("PASS: %0d outputs equal the integer convolution", OUT_CHANNELS);
    else $display("FAIL: %0d of %0d outputs", errors, OUT_CHANNELS);
    $finish;
  end
endmodule

// Chooses, after each pass of a draft, what is verified, and whether another pass pays.
#pragma once

#include <cstdint>

#include "acceptance/selection_rules.h"
#include "policy/action_cache.h"

namespace eaglerl {

// Confidences, then survivals: the tables of selection_rules.h.
struct SelectionTables {
  const int32_t* confidence;
  const int32_t* survival;
};
const SelectionTables& selection_tables();

// What one slot's draft has so far; written by every pass.
struct SelectionState {
  int32_t* record;        // (kSelectionWords)
  float* scores;          // (pool) of the candidates
  int64_t* token_ids;     // (pool)
  int32_t* parents;       // (pool) candidates, -1 for the root
  int32_t* logits;        // (pool)
  int32_t* lookup_nodes;  // (depth + 1) candidates that hold looked-up tokens, else -1
  int64_t* frontier;      // (3, top_k): candidates to expand, their tokens, their parents' places
};

// The rows to verify: the root, candidates in their order, looked-up tokens, unused rows.
struct SelectionRows {
  int64_t* token_ids;  // (rows)
  int64_t* parents;    // (rows)
  int64_t* levels;     // (rows)
  int32_t* nodes;      // (rows) candidates; pool + level of a looked-up token; -1 for others
  uint8_t* ancestors;  // (rows, rows) whether a column is the row itself or an ancestor of it
  uint8_t* enabled;    // (rows) whether a path may lead through it
};

// What a pass has drafted for a slot.
struct DraftedLevel {
  int32_t level;
  int64_t root;
  const int64_t* token_ids;   // (expanded, top_k), of 1 node at level 0 and top_k at others
  const float* log_probs;     // (expanded, top_k)
  int64_t match;              // length of the lookup's match; 0 for none
  int64_t looked_up;          // looked-up tokens
  const int64_t* lookup_ids;  // (lookup)
};

// What a slot's draft may have at most, within its sizes.
struct SelectionLimits {
  int32_t rows;    // of the tree, the root included
  int32_t passes;  // after the first one
  int32_t top_k;   // children of a node, and expanded nodes
  int32_t lookup;  // looked-up tokens
};

// Reads a slot's limits, which have the columns of a table of actions; null for none.
SelectionLimits read_limits(const SelectionSizes& sizes, const int32_t* limits);

// Takes a level, and writes the rows that are best if the draft ends with it. Does nothing after a
// level that ended the draft.
void select_draft_nodes(const SelectionSizes& sizes, const int32_t* rule,
                        const SelectionLimits& limits, const DraftedLevel& drafted,
                        const SelectionState& state, const SelectionRows& out);

}  // namespace eaglerl

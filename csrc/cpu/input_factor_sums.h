// The region sums of a lag plan for one group, in the tiles that the packed kernel accumulates into.
#pragma once
#include <vector>

#include "cpu/input_factor_pack.h"

namespace spectral_ext::cpu {

// The samples are cut into pieces: `streams` pieces at a time are packed side by side, each with its own accumulators.
// Only the geometry decides the cut, so that results do not depend on the number of threads.
struct Schedule {
  int64_t samples;  // a piece
  int64_t streams;
  int64_t rounds;
  int64_t fold_every;  // rounds after which tiles are added to totals: short sums of sums keep float32 exact to ~1e-6
};

template <class T>
class RegionSums {
 public:
  RegionSums(const LagPlan& plan, const Input& input, bool channels_last_order, const Context& context);

  void run(int64_t group);

  // [region][panel a][panel b][kPanel][kPanel]; of a symmetric class only panel a ≤ panel b.
  const T* tiles() const { return totals_ ? totals_ : tiles_; }
  // [sum region][panel · kPanel]
  const double* sums() const { return sums_; }
  int64_t panels() const { return packing_.panels(); }

 private:
  struct Item {
    int64_t stream, panel;
    int32_t of_class;
  };
  void share_out();
  void pack(int64_t group, int64_t round);
  void multiply(int64_t thread, int64_t round);
  void multiply_row(const Item& item, int64_t samples, int64_t u0, int64_t u1, int64_t begin, int64_t end);
  void add_columns(int64_t stream, int64_t samples, int64_t panel);
  void fold(int64_t thread);
  void reduce();
  int64_t piece_begin(int64_t round, int64_t stream) const;
  int64_t piece_samples(int64_t round, int64_t stream) const;
  T* buffer(int64_t stream) const { return packed_ + stream * stream_numbers_; }

  const LagPlan& plan_;
  const Context& context_;
  Packing<T> packing_;
  Schedule schedule_;
  int64_t tile_numbers_, sum_numbers_, stream_numbers_, block_;
  std::vector<std::vector<Item>> items_;                                   // a thread
  std::vector<std::array<std::vector<int32_t>, kAxes>> segment_of_class_;  // position → segment or −1
  T *packed_, *tiles_, *scratch_, *totals_ = nullptr;
  double* sums_;
};

}  // namespace spectral_ext::cpu

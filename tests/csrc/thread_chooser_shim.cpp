// csrc/common/thread_chooser.h for ctypes.
#include "common/thread_chooser.h"

using eaglerl::ThreadChooser;

extern "C" {
ThreadChooser* chooser_new() { return new ThreadChooser; }
void chooser_delete(ThreadChooser* chooser) { delete chooser; }
int chooser_choose(ThreadChooser* chooser, int wanted, double now) {
  return chooser->choose(wanted, now);
}
void chooser_observe(ThreadChooser* chooser, int threads, double now, double seconds,
                     double stalled) {
  chooser->observe(threads, now, {seconds, stalled});
}
int chooser_limit(const ThreadChooser* chooser) { return chooser->limit(); }
bool chooser_lasts(const ThreadChooser* chooser) { return chooser->lasts(); }
}

// Holds log.0 to log.2 and its working directory, and sleeps.

#include <fcntl.h>

#include "victim.h"

int main() {
  for (int i = 0; i < 3; ++i) {
    char path[64];
    snprintf(path, sizeof path, "log.%d", i);
    if (open(path, O_RDWR | O_APPEND) < 0)
      victim::Die("open %s", path);
  }
  victim::Ready();
  char c;
  while (read(0, &c, 1) > 0) {
  }
  if (errno != 0)
    victim::Die("read");
  victim::Ok("0");
}

// A disk on which a checkpoint and an image take longer than ranks wait for each other's gradients: fsync takes 8 seconds, once for each.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

int fsync(int file) {
  static int is_slow[2] = {1, 1};
  static const char *const names[2] = {"checkpoint-2", "samples"};
  char link[64], path[4097];
  snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  const ssize_t length = readlink(link, path, sizeof path - 1);
  path[length < 0 ? 0 : length] = 0;
  for (int i = 0; i < 2; ++i)
    if (is_slow[i] && strstr(path, names[i])) is_slow[i] = 0, sleep(8);
  return ((int (*)(int))dlsym(RTLD_NEXT, "fsync"))(file);
}

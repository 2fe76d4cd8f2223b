// Lets a program that is linked on a newer Linux run on glibc 2.28, which manylinux_2_28 promises.
//
// Newer C libraries give old functions new symbol versions, and a program asks for the newest that it was linked with. The linker
// sends each call of a function NAME that has a __wrap_NAME here to it (--wrap), and that asks for the version that every
// x86-64 glibc has. build.rs reads the names from this file.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define BASE "GLIBC_2.2.5"
// Declares old_NAME, which is NAME of that version.
#define OLD(version, type, name, ...) \
  extern type old_##name(__VA_ARGS__); \
  __asm__(".symver old_" #name ", " #name "@" version)

// Start. Before 2.34 the program itself ran its initialisers, in a function that its start code named; newer start code names none.
typedef void initialiser(int, char **, char **);
extern initialiser *__init_array_start[] __attribute__((visibility("hidden")));
extern initialiser *__init_array_end[] __attribute__((visibility("hidden")));
extern void _init(void);

static void initialise(int argc, char **argv, char **environment) {
  _init();
  for (initialiser **each = __init_array_start; each < __init_array_end; each++) (*each)(argc, argv, environment);
}

OLD(BASE, int, __libc_start_main, int (*)(int, char **, char **), int, char **, initialiser *, void (*)(void), void (*)(void), void *);
int __wrap___libc_start_main(int (*program)(int, char **, char **), int argc, char **argv, initialiser *init, void (*fini)(void),
                             void (*loader_fini)(void), void *stack_end) {
  return old___libc_start_main(program, argc, argv, init ? init : initialise, fini, loader_fini, stack_end);
}

// Mathematics: 2.29, 2.35 and 2.38 dropped the SVID error handling, and nothing else.
OLD(BASE, double, fmod, double, double);
OLD(BASE, double, hypot, double, double);
OLD(BASE, double, log2, double);
double __wrap_fmod(double x, double y) { return old_fmod(x, y); }
double __wrap_hypot(double x, double y) { return old_hypot(x, y); }
double __wrap_log2(double x) { return old_log2(x); }
OLD(BASE, double, exp, double);
OLD(BASE, double, exp2, double);
OLD(BASE, double, log, double);
OLD(BASE, double, pow, double, double);
double __wrap_exp(double x) { return old_exp(x); }
double __wrap_exp2(double x) { return old_exp2(x); }
double __wrap_log(double x) { return old_log(x); }
double __wrap_pow(double x, double y) { return old_pow(x, y); }

// File status: before 2.33 these took the version of the structure.
extern int __xstat64(int, const char *, struct stat64 *);
extern int __lxstat64(int, const char *, struct stat64 *);
extern int __fxstat64(int, int, struct stat64 *);
int __wrap_stat64(const char *path, struct stat64 *status) { return __xstat64(1, path, status); }
int __wrap_lstat64(const char *path, struct stat64 *status) { return __lxstat64(1, path, status); }
int __wrap_fstat64(int file, struct stat64 *status) { return __fxstat64(1, file, status); }
extern int __fxstatat64(int, int, const char *, struct stat64 *, int);
int __wrap_fstatat64(int folder, const char *path, struct stat64 *status, int flags) {
  return __fxstatat64(1, folder, path, status, flags);
}

// Numbers: since 2.38 headers name the functions of C23, which read "0b1" too.
OLD(BASE, long, strtol, const char *, char **, int);
OLD(BASE, long long, strtoll, const char *, char **, int);
OLD(BASE, unsigned long, strtoul, const char *, char **, int);
OLD(BASE, unsigned long long, strtoull, const char *, char **, int);
long __wrap___isoc23_strtol(const char *text, char **end, int base) { return old_strtol(text, end, base); }
long long __wrap___isoc23_strtoll(const char *text, char **end, int base) { return old_strtoll(text, end, base); }
unsigned long __wrap___isoc23_strtoul(const char *text, char **end, int base) { return old_strtoul(text, end, base); }
unsigned long long __wrap___isoc23_strtoull(const char *text, char **end, int base) { return old_strtoull(text, end, base); }

// The loader and threads: 2.34 took libdl and libpthread into libc.
OLD(BASE, void *, dlopen, const char *, int);
OLD(BASE, void *, dlsym, void *, const char *);
OLD(BASE, char *, dlerror, void);
OLD(BASE, int, dlclose, void *);
OLD(BASE, int, dladdr, const void *, Dl_info *);
char *__wrap_dlerror(void) { return old_dlerror(); }
int __wrap_dlclose(void *library) { return old_dlclose(library); }
int __wrap_dladdr(const void *address, Dl_info *found) { return old_dladdr(address, found); }
void *__wrap_dlopen(const char *path, int mode) { return old_dlopen(path, mode); }
void *__wrap_dlsym(void *library, const char *name) { return old_dlsym(library, name); }

OLD(BASE, int, pthread_create, pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
OLD(BASE, int, pthread_join, pthread_t, void **);
OLD(BASE, int, pthread_detach, pthread_t);
OLD("GLIBC_2.12", int, pthread_setname_np, pthread_t, const char *);
OLD(BASE, int, pthread_getattr_np, pthread_t, pthread_attr_t *);
OLD(BASE, int, pthread_attr_setstacksize, pthread_attr_t *, size_t);
OLD(BASE, int, pthread_attr_getstack, const pthread_attr_t *, void **, size_t *);
OLD(BASE, int, pthread_attr_getguardsize, const pthread_attr_t *, size_t *);
OLD(BASE, int, pthread_key_create, pthread_key_t *, void (*)(void *));
OLD(BASE, int, pthread_key_delete, pthread_key_t);
OLD(BASE, int, pthread_setspecific, pthread_key_t, const void *);
OLD(BASE, void *, pthread_getspecific, pthread_key_t);
OLD(BASE, int, pthread_kill, pthread_t, int);
OLD(BASE, int, pthread_sigmask, int, const sigset_t *, sigset_t *);
OLD(BASE, int, pthread_once, pthread_once_t *, void (*)(void));
OLD(BASE, int, pthread_mutex_trylock, pthread_mutex_t *);
OLD(BASE, int, pthread_mutexattr_init, pthread_mutexattr_t *);
OLD(BASE, int, pthread_mutexattr_settype, pthread_mutexattr_t *, int);
OLD(BASE, int, pthread_mutexattr_destroy, pthread_mutexattr_t *);
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *), void *argument) {
  return old_pthread_create(thread, attributes, run, argument);
}
int __wrap_pthread_join(pthread_t thread, void **result) { return old_pthread_join(thread, result); }
int __wrap_pthread_detach(pthread_t thread) { return old_pthread_detach(thread); }
int __wrap_pthread_setname_np(pthread_t thread, const char *name) { return old_pthread_setname_np(thread, name); }
int __wrap_pthread_getattr_np(pthread_t thread, pthread_attr_t *attributes) { return old_pthread_getattr_np(thread, attributes); }
int __wrap_pthread_attr_setstacksize(pthread_attr_t *attributes, size_t size) { return old_pthread_attr_setstacksize(attributes, size); }
int __wrap_pthread_attr_getstack(const pthread_attr_t *attributes, void **start, size_t *size) {
  return old_pthread_attr_getstack(attributes, start, size);
}
int __wrap_pthread_attr_getguardsize(const pthread_attr_t *attributes, size_t *size) {
  return old_pthread_attr_getguardsize(attributes, size);
}
int __wrap_pthread_key_create(pthread_key_t *key, void (*drop)(void *)) { return old_pthread_key_create(key, drop); }
int __wrap_pthread_key_delete(pthread_key_t key) { return old_pthread_key_delete(key); }
int __wrap_pthread_setspecific(pthread_key_t key, const void *value) { return old_pthread_setspecific(key, value); }
void *__wrap_pthread_getspecific(pthread_key_t key) { return old_pthread_getspecific(key); }
int __wrap_pthread_kill(pthread_t thread, int signal) { return old_pthread_kill(thread, signal); }
int __wrap_pthread_sigmask(int how, const sigset_t *set, sigset_t *before) { return old_pthread_sigmask(how, set, before); }
int __wrap_pthread_once(pthread_once_t *once, void (*run)(void)) { return old_pthread_once(once, run); }
int __wrap_pthread_mutex_trylock(pthread_mutex_t *mutex) { return old_pthread_mutex_trylock(mutex); }
int __wrap_pthread_mutexattr_init(pthread_mutexattr_t *attributes) { return old_pthread_mutexattr_init(attributes); }
int __wrap_pthread_mutexattr_settype(pthread_mutexattr_t *attributes, int type) { return old_pthread_mutexattr_settype(attributes, type); }
int __wrap_pthread_mutexattr_destroy(pthread_mutexattr_t *attributes) { return old_pthread_mutexattr_destroy(attributes); }

// A function of 2.30.
pid_t __wrap_gettid(void) { return (pid_t)syscall(SYS_gettid); }

// A variable of 2.32 that libstdc++'s headers read: reference counts are always counted as with more threads than one.
__attribute__((visibility("hidden"))) char __libc_single_threaded = 0;

// A function of 2.29 that Rust's standard library asks for weakly, which the version of its symbol is not: looked up where there is one.
int __wrap_posix_spawn_file_actions_addchdir_np(posix_spawn_file_actions_t *actions, const char *path) {
  int (*own)(posix_spawn_file_actions_t *, const char *) = old_dlsym(RTLD_DEFAULT, "posix_spawn_file_actions_addchdir_np");
  return own ? own(actions, path) : ENOSYS;
}

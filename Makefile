# bdpo-train: `make demo` and `make test` are all a newcomer needs; `make help` lists the rest.
# BUILD=release|debug|asan|tsan   CC=gcc|clang   CUDA=0   WERROR=1 (what the CI sets)
BUILD ?= release
CUDA ?= 0
WERROR ?= 0
PREFIX ?= /usr/local
CC := $(if $(filter default,$(origin CC)),gcc,$(CC))
VERSION := 0.1.0

ifneq ($(CUDA),0)
$(error CUDA=$(CUDA): the CUDA backend is not in this version; build with CUDA=0)
endif

O := build/$(BUILD)$(if $(filter gcc,$(CC)),,-$(notdir $(CC)))
PKGS := jansson zlib libpcre2-8 libutf8proc
PKG_CFLAGS = $(shell pkg-config --cflags $(PKGS) 2>/dev/null)
PKG_LIBS = $(shell pkg-config --libs $(PKGS) 2>/dev/null)

probe = $(shell echo 'int main(void){return 0;}' | $(CC) -Werror $(1) -x c -o /dev/null - 2>/dev/null && echo $(1))
WARN := -Wall -Wextra -Wformat=2 -Wshadow -Wimplicit-fallthrough -Wvla -Wstrict-prototypes -Wmissing-prototypes -Wundef \
        -Wpointer-arith -Wcast-qual -Wwrite-strings $(if $(filter 1,$(WERROR)),-Werror)
HARDEN := -fstack-protector-strong $(call probe,-fstack-clash-protection) $(call probe,-fcf-protection=full) -fPIE
LINK_HARDEN := -pie -Wl,-z,relro,-z,now,-z,noexecstack
OPT_release := -O2 -g -U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=2
OPT_debug := -O0 -g3
OPT_asan := -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer
OPT_tsan := -O1 -g -fsanitize=thread
ifeq ($(OPT_$(BUILD)),)
$(error BUILD=$(BUILD): one of release, debug, asan, tsan)
endif
CFLAGS_ALL = -std=c11 -D_GNU_SOURCE -DBDPO_VERSION='"$(VERSION)"' $(OPT_$(BUILD)) $(HARDEN) $(WARN) -fopenmp -ffp-contract=off $(PKG_CFLAGS) $(CFLAGS)
LDFLAGS_ALL = $(OPT_$(BUILD)) $(LINK_HARDEN) -fopenmp $(LDFLAGS)
LIBS = $(PKG_LIBS) -ldnnl -lm

SRC := $(wildcard src/*/*.c) cuda/none.c
# rows.c holds the inner loops; it is built once per instruction set and chosen at run time
ROWS := src/cpu/rows.c
OBJ := $(patsubst %.c,$(O)/%.o,$(filter-out $(ROWS),$(SRC))) $(O)/src/cpu/rows_base.o $(O)/src/cpu/rows_avx2.o $(O)/src/cpu/rows_avx512.o
LIB := $(O)/libbdpo.a
BIN := $(O)/bdpo-train
TESTS := $(patsubst test/%.c,$(O)/test/%,$(wildcard test/t_*.c))
TESTLIB := $(patsubst %.c,$(O)/%.o,$(filter-out $(wildcard test/t_*.c) test/bench.c,$(wildcard test/*.c)))

.PHONY: all deps demo test bench lint format asan tsan ci ci-full clean install help torch
.DELETE_ON_ERROR:
.SECONDARY:
all: $(BIN) bdpo-train.link

# a convenience link so that ./build/bdpo-train is always the newest build
.PHONY: bdpo-train.link
bdpo-train.link: $(BIN)
	@ln -sf ../$(BIN) build/bdpo-train

deps:
	@sh scripts/install-deps.sh

$(BIN): $(O)/bdpo-train.o $(LIB)
	$(CC) $(LDFLAGS_ALL) -o $@ $< $(LIB) $(LIBS)
$(LIB): $(OBJ)
	@rm -f $@
	ar rcs $@ $^
$(O)/%.o: %.c Makefile
	@mkdir -p $(@D)
	$(CC) $(CFLAGS_ALL) -MMD -MP -c -o $@ $<
ROWS_FLAGS := $(if $(filter release,$(BUILD)),-O3) -ffp-contract=fast
ROWS_base := -march=x86-64
ROWS_avx2 := -march=haswell
ROWS_avx512 := -march=skylake-avx512 -mprefer-vector-width=512
$(O)/src/cpu/rows_%.o: $(ROWS) Makefile
	@mkdir -p $(@D)
	$(CC) $(CFLAGS_ALL) $(ROWS_FLAGS) $(ROWS_$*) -DROWS_ISA=$* -MMD -MP -c -o $@ $<
$(O)/test/%: $(O)/test/%.o $(TESTLIB) $(LIB)
	$(CC) $(LDFLAGS_ALL) -o $@ $< $(TESTLIB) $(LIB) $(LIBS) $(shell pkg-config --libs cmocka)
-include $(shell find build -name '*.d' 2>/dev/null)

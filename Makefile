# bdpo-train: `make demo` and `make test` are all a newcomer needs; `make help` lists the rest.
# BUILD=release|debug|asan|tsan   CC=gcc|clang   CUDA=0|1   MPI=0|1   MPICC=mpicc   WERROR=1 (what the CI sets)   V=1 (show the commands)
BUILD ?= release
CUDA ?= 0
WERROR ?= 0
PREFIX ?= /usr/local
CC := $(if $(filter default,$(origin CC)),gcc,$(CC))
VERSION := 0.1.0

# Several ranks need an MPI library, whose compiler driver knows its flags; without one comm_none.c takes the place of comm_mpi.c. MPI=1 insists.
MPICC ?= mpicc
MPI_CC = OMPI_CC='$(CC)' MPICH_CC='$(CC)' $(MPICC)
MPI_FOUND := $(if $(filter 0,$(MPI)),,$(shell echo 'int main(void){return MPI_Init(0,0);}' | $(MPI_CC) -include mpi.h -x c -o /dev/null - 2>/dev/null && echo 1))
ifeq ($(MPI)-$(MPI_FOUND),1-)
$(error MPI=1: $(MPICC) does not build an MPI program; install one (Debian: libopenmpi-dev) or name it with MPICC=...)
endif
LINK = $(if $(MPI_FOUND),$(MPI_CC),$(CC))

O := build/$(BUILD)$(if $(filter 0,$(CUDA)),,-cuda)$(if $(filter gcc,$(CC)),,-$(notdir $(CC)))
PKGS := jansson zlib libpcre2-8 libutf8proc
PKG_CFLAGS := $(shell pkg-config --cflags $(PKGS) 2>/dev/null)
PKG_LIBS := $(shell pkg-config --libs $(PKGS) 2>/dev/null)
CMOCKA_LIBS := $(shell pkg-config --libs cmocka 2>/dev/null)

probe = $(shell echo 'int main(void){return 0;}' | $(CC) -Werror $(1) -x c -o /dev/null - 2>/dev/null && echo $(1))
WARN := -Wall -Wextra -Wformat=2 -Wshadow -Wimplicit-fallthrough -Wvla -Wstrict-prototypes -Wmissing-prototypes -Wundef \
        -Wpointer-arith -Wcast-qual -Wwrite-strings $(if $(filter 1,$(WERROR)),-Werror)
HARDEN := -fstack-protector-strong $(call probe,-fstack-clash-protection) $(call probe,-fcf-protection=full) -fPIE
LINK_HARDEN := -pie -Wl,-z,relro,-z,now,-z,noexecstack
OPT_release := -O2 -g -U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=2
OPT_debug := -O0 -g3
OPT_asan := -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer
OPT_fuzz := -O1 -g -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer
OPT_tsan := -O1 -g -fsanitize=thread
ifeq ($(OPT_$(BUILD)),)
$(error BUILD=$(BUILD): one of release, debug, asan, tsan, fuzz)
endif
CFLAGS_ALL := -std=c11 -D_GNU_SOURCE -DBDPO_VERSION='"$(VERSION)"' $(OPT_$(BUILD)) $(HARDEN) $(WARN) -fopenmp -ffp-contract=off $(PKG_CFLAGS) $(CFLAGS)
LDFLAGS_ALL := $(OPT_$(BUILD)) $(LINK_HARDEN) -fopenmp $(LDFLAGS)
LIBS := $(PKG_LIBS) -ldnnl -lm

, := ,
# The CUDA backend: nvcc for the GPU (CUDA=1), and always for the CPU, where its tests run on an emulated device (test/cuda_emu).
CUDA_CU := $(wildcard cuda/*.cu)
CUDA_C := $(filter-out cuda/none.c cuda/sdpa_none.c,$(wildcard cuda/*.c))
NVCC ?= $(firstword $(shell command -v nvcc 2>/dev/null) $(wildcard /usr/local/cuda/bin/nvcc build/nvcc/bin/nvcc))
CUDA_HOME ?= $(patsubst %/bin/nvcc,%,$(NVCC))
CUDA_ARCHS ?= 80 86 90
CXX := $(if $(filter default,$(origin CXX)),$(if $(findstring clang,$(CC)),clang++,g++),$(CXX))
ifneq ($(CUDA),0)
ifeq ($(NVCC),)
$(error CUDA=1: no nvcc was found; `sh scripts/install-deps.sh cuda` installs one, or name it with NVCC=...)
endif
CFLAGS_CUDA := -I$(CUDA_HOME)/include
LIBS += -L$(CUDA_HOME)/lib64 -L$(CUDA_HOME)/lib -lcudart_static -ldl -lrt -lpthread
endif
# cuDNN's attention (CUDA=1): its headers and those of its C++ frontend, which `sh scripts/install-deps.sh cudnn` gets; sdpa_none.c takes
# the place where one of them is not there or CUDNN is empty
CUDNN_FRONTEND ?= $(firstword $(patsubst %/cudnn_frontend.h,%,$(wildcard build/cudnn/include/cudnn_frontend.h /usr/local/include/cudnn_frontend.h /usr/include/cudnn_frontend.h)))
CUDNN_HEADERS ?= $(firstword $(patsubst %/cudnn.h,%,$(wildcard $(CUDA_HOME)/include/cudnn.h build/cudnn/nvidia/cudnn/include/cudnn.h /usr/include/cudnn.h /usr/include/x86_64-linux-gnu/cudnn.h)))
CUDNN ?= $(if $(CUDNN_FRONTEND),$(if $(CUDNN_HEADERS),1))
CUDNN_OBJ := $(if $(CUDNN),cuda/attention_cudnn.o,cuda/sdpa_none.o)
ifneq ($(CUDA),0)
LIBS += $(if $(CUDNN),-lstdc++)
endif
NVCC_FLAGS := -std=c++17 -O3 -lineinfo -ccbin $(CXX) $(if $(filter 1,$(WERROR)),-Werror all-warnings) \
              $(foreach a,$(CUDA_ARCHS),-gencode arch=compute_$a$(,)code=sm_$a) \
              -gencode arch=compute_$(lastword $(CUDA_ARCHS))$(,)code=compute_$(lastword $(CUDA_ARCHS)) \
              -Xcompiler -fPIE,-fstack-protector-strong,-fno-exceptions,-fno-rtti,-fno-threadsafe-statics,-D_GNU_SOURCE
EMU := $(if $(filter tsan fuzz,$(BUILD)),,1)
EMU_FLAGS := -D_GNU_SOURCE -Itest/cuda_emu/include $(OPT_$(BUILD)) $(HARDEN) -ffp-contract=off -Wall -Wextra -Wshadow $(if $(filter 1,$(WERROR)),-Werror) \
             $(if $(findstring clang,$(CC)),-Wno-pass-failed)
EMU_CXX := -std=c++17 -fno-exceptions -fno-rtti -fno-threadsafe-statics -Wno-unknown-pragmas $(EMU_FLAGS)
EMU_OBJ := $(patsubst %,$(O)/emu/%.o,$(CUDA_CU) $(filter-out cuda/lt.c cuda/nccl.c cuda/library.c,$(CUDA_C)) $(wildcard test/cuda_emu/*.cpp))
SRC := $(filter-out src/dist/comm_%.c,$(wildcard src/*/*.c)) $(if $(filter 0,$(CUDA)),cuda/none.c,$(CUDA_C))
COMM := src/dist/comm_$(if $(MPI_FOUND),mpi,none)
# rows.c holds the inner loops; it is built once per instruction set and chosen at run time
ROWS := src/cpu/rows.c
ROWS_ISAS := base avx2 avx512 avx512_bf16 amx_bf16
ROWS_FLAGS := $(if $(filter release,$(BUILD)),-O3) -ffp-contract=fast
ROWS_base := -march=x86-64
ROWS_avx2 := -march=haswell
ROWS_avx512 := -march=skylake-avx512 -mprefer-vector-width=512
ROWS_avx512_bf16 := $(ROWS_avx512) -mavx512bf16
ROWS_amx_bf16 := $(ROWS_avx512_bf16) -mamx-tile -mamx-bf16
OBJ := $(patsubst %.c,$(O)/%.o,$(filter-out $(ROWS),$(SRC))) $(patsubst %,$(O)/src/cpu/rows_%.o,$(ROWS_ISAS)) $(O)/$(COMM).o \
       $(if $(filter 0,$(CUDA)),,$(patsubst %.cu,$(O)/%.o,$(CUDA_CU)) $(O)/$(CUDNN_OBJ))
LIB := $(O)/libbdpo.a
BIN := $(O)/bdpo-train
# the longest first, so that two at a time end together
SLOW := test/t_cuda_ops.c test/t_ops.c test/t_cuda_attention.c
TESTS := $(patsubst test/%.c,$(O)/test/%,$(filter-out $(if $(EMU),,test/t_cuda_%),$(SLOW) $(filter-out $(SLOW),$(wildcard test/t_*.c))))
TESTLIB := $(patsubst %.c,$(O)/%.o,$(filter-out $(wildcard test/t_*.c) test/bench.c,$(wildcard test/*.c)))
# the loops of AVX-512 and AMX in plain C, for processors without them; more than -O1 takes the compiler a minute
ROWS_EMU := $(if $(filter release,$(BUILD)),$(patsubst %,$(O)/test/isa_emu/rows_%.o,avx512 avx512_bf16 amx_bf16))
TESTLIB += $(ROWS_EMU)
BENCH := $(O)/test/bench
# What a bundle has: the program with its libraries beside it and, in comm_mpi.c's place, a loader of whatever MPI starts it; comm_mpi.c for
# either binary interface; where there is nvcc, what tests and measures a device
MPICC_OPENMPI ?= mpicc.openmpi
MPICC_MPICH ?= mpicc.mpich
BUNDLE := $(O)/bundle
BUNDLE_MPI := $(if $(shell command -v $(MPICC_OPENMPI)),$(BUNDLE)/bdpo-openmpi.so) $(if $(shell command -v $(MPICC_MPICH)),$(BUNDLE)/bdpo-mpich.so)
BUNDLE_TESTS := $(if $(filter 0,$(CUDA)),,$(BUNDLE)/bench $(BUNDLE)/device_ops)
BUNDLE_LDFLAGS := -Wl$(,)-rpath$(,)'$$ORIGIN/lib:$$ORIGIN/../lib' -Wl$(,)--disable-new-dtags $(patsubst %,-Wl$(,)--export-dynamic-symbol=%,bug err_set mem_calloc mem_grow)
# the program with the CUDA backend on the emulated device, for tests of whole jobs
BIN_EMU := $(if $(EMU),$(O)/bdpo-train-emu)
# the program once more, with faults in the place of the system's calls (test/fault/fault.c); bdpo-train has none of it
FAULTY := $(O)/bdpo-train-fault
FAULT_WRAP := $(patsubst %,-Wl$(,)--wrap=%,open openat write pwrite fsync mkdir rename renameat2 unlink unlinkat ftruncate lseek fallocate \
              calloc realloc aligned_alloc model_logp model_backward stage_step)
FUZZ := $(patsubst test/fuzz/fuzz_%.c,$(O)/test/fuzz/fuzz_%,$(wildcard test/fuzz/fuzz_*.c))
FUZZ_SECONDS ?= 60

# A Python with torch lets the outside judge (scripts/compare_torch.py, test/check_tokenizer.py) run; `make torch` makes one.
TORCH_PYTHON ?= $(if $(wildcard build/venv/bin/python),build/venv/bin/python,python3)
RUN_TESTS = BDPO_TRAIN=$(CURDIR)/$(BIN) BDPO_FAULTY=$(CURDIR)/$(FAULTY) TORCH_PYTHON=$(TORCH_PYTHON) LOG=$(O)/test.log sh scripts/run-tests.sh
SCRIPT_TESTS = $(sort $(wildcard test/*_test.sh test/*_test.py test/check_*.py)) $(wildcard scripts/compare_torch.py)
DEPS_FOR := $(if $(findstring clang,$(CC)),clang)

.PHONY: all deps demo test bench bench-rival lint format asan tsan ci ci-full clean install help torch
MAKEFLAGS += --no-builtin-rules
V ?= 0
SAY := $(if $(filter 0,$(V)),@printf '  %-5s %s\n',@:)
Q := $(if $(filter 0,$(V)),@)
.DELETE_ON_ERROR:
.SECONDARY:
.DEFAULT_GOAL := all

# build ---------------------------------------------------------------------------------------------------------------
all: $(BIN) $(if $(filter build/release build/release-cuda,$(O)),link)

# build/bdpo-train is the release build, with CUDA or without: the one made last
.PHONY: link
link: $(BIN)
	@[ "$$(readlink build/bdpo-train)" = $(O:build/%=%)/bdpo-train ] || ln -sfn $(O:build/%=%)/bdpo-train build/bdpo-train

# Stamps that change only when their text does: the compiler and its flags (everything is rebuilt), and which objects go
# into the library (a deleted source leaves it).
stamp = $(shell mkdir -p $(O) && printf '%s\n' '$(subst ','\'',$(2))' | cmp -s - $(O)/$(1) || printf '%s\n' '$(subst ','\'',$(2))' >$(O)/$(1))
ifneq ($(filter-out deps demo test-mpi lint format asan tsan fuzz ci ci-full clean help torch bench-rival mutant mutant-program test-cuda bench-cuda bundle,$(or $(MAKECMDGOALS),all)),)
$(call stamp,flags,$(shell $(CC) --version 2>&1 | head -n 1) $(CFLAGS_ALL) $(LDFLAGS_ALL) $(BUNDLE_LDFLAGS) $(LIBS) $(if $(MPI_FOUND),$(MPICC)) $(EMU_CXX) $(CXX) $(if $(filter 0,$(CUDA)),,$(NVCC) $(NVCC_FLAGS)) $(ROWS_FLAGS) $(foreach i,$(ROWS_ISAS),$(ROWS_$i)))
$(call stamp,objects,$(OBJ))
$(call stamp,test-objects,$(TESTLIB))
endif
$(O)/flags $(O)/objects $(O)/test-objects: ;

$(BIN): $(O)/bdpo-train.o $(LIB) $(O)/flags
	$(SAY) LINK $@
	$(Q)$(LINK) $(LDFLAGS_ALL) -o $@ $< $(LIB) $(LIBS)
$(FAULTY): $(O)/bdpo-train.o $(O)/test/fault/fault.o $(LIB) $(O)/flags
	$(SAY) LINK $@
	$(Q)$(LINK) $(LDFLAGS_ALL) $(FAULT_WRAP) -o $@ $(O)/bdpo-train.o $(O)/test/fault/fault.o $(LIB) $(LIBS)
$(LIB): $(OBJ) $(O)/objects
	$(SAY) AR $@
	@rm -f $@
	$(Q)ar rcs $@ $(OBJ)
$(O)/%.o: %.c $(O)/flags
	@mkdir -p $(@D)
	$(SAY) CC $(@:$(O)/%=%)
	$(Q)$(CC) $(CFLAGS_ALL) -MMD -MP -c -o $@ $<
$(patsubst %,$(O)/src/cpu/rows_%.o,$(ROWS_ISAS)): $(O)/src/cpu/rows_%.o: $(ROWS) $(O)/flags
	@mkdir -p $(@D)
	$(SAY) CC $(@:$(O)/%=%)
	$(Q)$(CC) $(CFLAGS_ALL) $(ROWS_FLAGS) $(ROWS_$*) -DROWS_ISA=$* -MMD -MP -c -o $@ $<
$(ROWS_EMU): $(O)/test/isa_emu/rows_%.o: $(ROWS) $(O)/flags
	@mkdir -p $(@D)
	$(SAY) CC $(@:$(O)/%=%)
	$(Q)$(CC) $(CFLAGS_ALL) $(ROWS_FLAGS) $(ROWS_avx2) -O1 -g0 $(if $(findstring bf16,$*),-DEMU_BF16) $(if $(findstring amx,$*),-DEMU_AMX) -Wno-psabi -Itest/isa_emu -DROWS_ISA=emulated_$* -MMD -MP -c -o $@ $<
$(O)/test/isa.o: CFLAGS_ALL += -DISA_EMULATED=$(words $(ROWS_EMU))
$(O)/src/dist/comm_mpi.o: src/dist/comm_mpi.c $(O)/flags
	@mkdir -p $(@D)
	$(SAY) CC $(@:$(O)/%=%)
	$(Q)$(MPI_CC) $(CFLAGS_ALL) -MMD -MP -c -o $@ $<
# comm_load.o stands before the library, whose own twin of it is then not taken
$(BUNDLE)/bdpo-train: $(O)/bdpo-train.o $(O)/src/dist/comm_load.o $(LIB) $(O)/flags
	@mkdir -p $(@D)
	$(SAY) LINK $@
	$(Q)$(CC) $(LDFLAGS_ALL) $(BUNDLE_LDFLAGS) -o $@ $(filter %.o,$^) $(LIB) $(LIBS) -ldl
$(BUNDLE)/bench $(BUNDLE)/device_ops: $(BUNDLE)/%: $(O)/src/dist/comm_load.o $(TESTLIB) $(LIB) $(O)/flags $(O)/test-objects
	@mkdir -p $(@D)
	$(SAY) LINK $@
	$(Q)$(CC) $(LDFLAGS_ALL) $(BUNDLE_LDFLAGS) -o $@ $(filter %.o,$^) $(LIB) $(LIBS) $(CMOCKA_LIBS) -ldl
$(BUNDLE)/bench: $(BENCH).o
$(BUNDLE)/device_ops: $(O)/test/device/device_ops.o
$(BUNDLE)/bdpo-openmpi.so: MPICC = $(MPICC_OPENMPI)
$(BUNDLE)/bdpo-mpich.so: MPICC = $(MPICC_MPICH)
# it names no library: the one that comm_load.c found is there
$(BUNDLE)/bdpo-%.so: src/dist/comm_mpi.c $(O)/flags
	@mkdir -p $(@D)
	$(SAY) LINK $@
	$(Q)$(MPI_CC) $(CFLAGS_ALL) -fPIC -MMD -MP -c -o $(@:.so=.o) $<
	$(Q)$(CC) -shared -Wl,-z,relro,-z,now,-z,noexecstack -o $@ $(@:.so=.o)
# the emulated backend's objects stand before the library's, whose own backend is then not taken
$(filter $(O)/test/t_cuda_%,$(TESTS)): EMULATED = $(EMU_OBJ)
$(filter $(O)/test/t_cuda_%,$(TESTS)): $(EMU_OBJ)
$(TESTS) $(BENCH) $(O)/test/device/device_ops: %: %.o $(TESTLIB) $(LIB) $(O)/flags $(O)/test-objects
	$(SAY) LINK $@
	$(Q)$(LINK) $(LDFLAGS_ALL) -o $@ $< $(TESTLIB) $(EMULATED) $(LIB) $(LIBS) $(CMOCKA_LIBS)
$(O)/bdpo-train-emu: $(O)/bdpo-train.o $(EMU_OBJ) $(LIB) $(O)/flags
	$(SAY) LINK $@
	$(Q)$(LINK) $(LDFLAGS_ALL) -o $@ $< $(EMU_OBJ) $(LIB) $(LIBS)
$(O)/cuda/%.o: cuda/%.cu $(O)/flags
	@mkdir -p $(@D)
	$(SAY) NVCC $(@:$(O)/%=%)
	$(Q)$(NVCC) $(NVCC_FLAGS) -MMD -MP -MF $(@:.o=.d) -c -o $@ $<
$(O)/cuda/attention_cudnn.o: cuda/attention_cudnn.cpp $(O)/flags
	@mkdir -p $(@D)
	$(SAY) CXX $(@:$(O)/%=%)
	$(Q)$(CXX) -std=c++17 -O2 -D_GNU_SOURCE -fPIE -Wall -Wextra $(if $(filter 1,$(WERROR)),-Werror) -isystem $(CUDNN_FRONTEND) -isystem $(CUDNN_HEADERS) \
	    -isystem $(CUDA_HOME)/include -MMD -MP -c -o $@ $<
$(patsubst %.c,$(O)/%.o,$(CUDA_C) cuda/sdpa_none.c): $(O)/%.o: %.c $(O)/flags
	@mkdir -p $(@D)
	$(SAY) CC $(@:$(O)/%=%)
	$(Q)$(CC) $(CFLAGS_ALL) $(CFLAGS_CUDA) -MMD -MP -c -o $@ $<
$(O)/emu/%.cu.o: %.cu $(O)/flags
	@mkdir -p $(@D)
	$(SAY) CXX $(@:$(O)/%=%)
	$(Q)$(CXX) $(EMU_CXX) -MMD -MP -x c++ -c -o $@ $<
# cuda/lt.h and cuda/nccl.h against the libraries' own headers, where those are (CUDA=1)
ABI := $(if $(wildcard $(CUDA_HOME)/include/cublasLt.h),$(O)/test/cuda_emu/lt_abi.o) $(if $(wildcard $(CUDA_HOME)/include/nccl.h),$(O)/test/cuda_emu/nccl_abi.o)
.PHONY: cuda-abi
cuda-abi: $(ABI)
$(patsubst %.c,$(O)/%.o,$(wildcard test/cuda_emu/*_abi.c)): $(O)/%.o: %.c $(O)/flags
	@mkdir -p $(@D)
	$(SAY) CC $(@:$(O)/%=%)
	$(Q)$(CC) $(CFLAGS_ALL) -isystem $(CUDA_HOME)/include -MMD -MP -c -o $@ $<
# a test with a changed copy of one kernel file, for test/cuda_mutants_test.py
MUTANT_TEST ?= t_cuda_ops
.PHONY: mutant
mutant:
	$(Q)$(CXX) $(EMU_CXX) -w -iquote cuda -x c++ -c -o $(MUTANT_OUT).o $(MUTANT)
	$(Q)$(LINK) $(LDFLAGS_ALL) -o $(MUTANT_OUT) $(O)/test/$(MUTANT_TEST).o $(TESTLIB) $(MUTANT_OUT).o \
	    $(filter-out %/cuda/$(notdir $(MUTANT)).o,$(EMU_OBJ)) $(LIB) $(LIBS) $(CMOCKA_LIBS)
# the program with a changed copy of a C file of cuda/ or src/, for test/cuda_ranks_test.py
.PHONY: mutant-program
mutant-program:
	$(Q)$(CC) -std=c11 $(EMU_FLAGS) -w -iquote $(dir $(MUTANT_OF)) -c -o $(MUTANT_OUT).o $(MUTANT)
	$(Q)$(LINK) $(LDFLAGS_ALL) -o $(MUTANT_OUT) $(O)/bdpo-train.o $(MUTANT_OUT).o $(filter-out %/$(MUTANT_OF).o,$(EMU_OBJ)) $(LIB) $(LIBS)
$(O)/emu/%.cpp.o: %.cpp $(O)/flags
	@mkdir -p $(@D)
	$(SAY) CXX $(@:$(O)/%=%)
	$(Q)$(CXX) $(EMU_CXX) -MMD -MP -c -o $@ $<
$(O)/emu/%.c.o: %.c $(O)/flags
	@mkdir -p $(@D)
	$(SAY) CC $(@:$(O)/%=%)
	$(Q)$(CC) -std=c11 $(EMU_FLAGS) -MMD -MP -c -o $@ $<
$(FUZZ): %: %.o $(TESTLIB) $(LIB) $(O)/flags $(O)/test-objects
	$(SAY) LINK $@
	$(Q)$(LINK) $(LDFLAGS_ALL) -fsanitize=fuzzer -o $@ $< $(TESTLIB) $(LIB) $(LIBS) $(CMOCKA_LIBS)
# the oracle in double precision is half of the time of the sanitizers' tests, and reads nothing but what they have checked
$(O)/test/ref_ops.o: CFLAGS_ALL += $(if $(filter asan tsan,$(BUILD)),-O2 -fno-sanitize=all)
-include $(patsubst %.o,%.d,$(OBJ) $(EMU_OBJ) $(TESTLIB) $(O)/bdpo-train.o $(O)/test/fault/fault.o $(TESTS:=.o) $(BENCH).o $(O)/test/device/device_ops.o $(O)/src/dist/comm_load.o $(BUNDLE_MPI:.so=.o))

# what people run -----------------------------------------------------------------------------------------------------
deps:
	@CC=$(CC) sh scripts/install-deps.sh build $(DEPS_FOR)

# the second make sees the libraries that the first one has just installed
demo: deps
	@$(MAKE) --no-print-directory BUILD=release all
	@BDPO_TRAIN=build/bdpo-train sh scripts/demo.sh

test: deps
	@$(MAKE) --no-print-directory test-built

.PHONY: build-tests test-built test-c test-sanitized test-crash test-slurm fuzz fuzz-built
build-tests: $(BIN) $(FAULTY) $(BIN_EMU) $(TESTS) $(if $(filter release,$(BUILD)),$(BUNDLE)/bdpo-train $(BUNDLE_MPI))
test-built: build-tests
	@$(RUN_TESTS) $(TESTS) $(SCRIPT_TESTS)
# the C tests and the shell tests, and with those on the emulated device: what the sanitizer builds run (WITHOUT=NAME ... leaves some out)
test-c: build-tests
	@$(RUN_TESTS) $(filter-out $(O)/test/t_cuda_%,$(TESTS)) $(wildcard test/*_test.sh)
test-sanitized: build-tests
	@$(RUN_TESTS) $(filter-out $(WITHOUT:%=$(O)/test/%),$(TESTS)) $(wildcard test/*_test.sh)

# the long ones: every call of the system fails or is the last one before a kill or a power cut, three hundred kills, a hundred of two ranks
test-crash: deps
	@$(MAKE) --no-print-directory build-tests
	BDPO_TRAIN=$(CURDIR)/$(BIN) BDPO_FAULTY=$(CURDIR)/$(FAULTY) python3 test/fault_test.py --all
	BDPO_TRAIN=$(CURDIR)/$(BIN) BDPO_FAULTY=$(CURDIR)/$(FAULTY) python3 test/disk_test.py --cuts 0
	BDPO_TRAIN=$(CURDIR)/$(BIN) python3 test/resume_test.py --kills 100
	BDPO_TRAIN=$(CURDIR)/$(BIN) BDPO_FAULTY=$(CURDIR)/$(FAULTY) python3 test/mpi_fault_test.py --number 60
	BDPO_TRAIN=$(CURDIR)/$(BIN) BDPO_FAULTY=$(CURDIR)/$(FAULTY) python3 test/mpi_end_test.py --kills 100

# the scripts of configs/slurm on a Slurm of one node that is made for it; as root, about 5 minutes
test-slurm: all
	@BDPO_TRAIN=$(CURDIR)/$(BIN) bash scripts/try-slurm.sh

# whole jobs on several ranks of this machine; `make test` runs it too
.PHONY: test-mpi
test-mpi: deps
	@$(MAKE) --no-print-directory $(BIN) $(O)/test/t_zero $(O)/test/t_replica
	@$(RUN_TESTS) test/mpi_test.py

# jobs on several hosts, made of network namespaces; as root
.PHONY: test-hosts bench-ranks
test-hosts: all
	@BDPO_TRAIN=$(CURDIR)/$(BIN) python3 test/try_hosts.py

# on a machine with a CUDA device, after or with CUDA=1; both also run from a bundle
.PHONY: test-cuda bench-cuda bundle
test-cuda bench-cuda: deps
	@sh scripts/install-deps.sh cuda
	@$(MAKE) --no-print-directory CUDA=1 $@-built
bundle: deps
	@sh scripts/install-deps.sh cuda mpi
	@$(MAKE) --no-print-directory CUDA=1 bundle-built
.PHONY: test-cuda-built bench-cuda-built bundle-built
test-cuda-built: $(BIN) $(O)/test/device/device_ops
	@sh scripts/test-cuda.sh $(O)/test/device/device_ops $(BIN) test/golden_test.py
bench-cuda-built: $(BENCH) $(BIN)
	@BENCH_BACKEND=cuda $(BENCH)
	@BDPO_TRAIN=$(CURDIR)/$(BIN) python3 scripts/bench_steps.py --results build/bench-steps.json $(STEPS)
bundle-built: bundle-parts
	@sh scripts/bundle.sh $(BUNDLE) build/bdpo-train-bundle
	@sh scripts/bundle.sh --pack build/bdpo-train-bundle
.PHONY: bundle-parts
bundle-parts: $(BUNDLE)/bdpo-train $(BUNDLE_MPI) $(BUNDLE_TESTS)

bench: deps
	@$(MAKE) --no-print-directory $(BENCH)
	@$(BENCH)

# memory, traffic and waiting of 1, 2, 4 and 8 ranks; the table of docs/clusters.md
bench-ranks: all
	@BDPO_TRAIN=$(CURDIR)/$(BIN) python3 scripts/bench_ranks.py --write docs/clusters.md

# Against TRL and a plain PyTorch loop, hours for all modes: RIVAL='--modes "trl amp pre1" --batch 2' takes some of them.
# What build/bench-rival holds from earlier calls is not measured again.
bench-rival: deps
	@$(MAKE) --no-print-directory BUILD=release all
	@$(if $(shell $(TORCH_PYTHON) -c 'import torch, trl, datasets' 2>/dev/null && echo yes),,$(MAKE) --no-print-directory build/venv/.rival)
	@export TORCH_PYTHON=$$($(TORCH_PYTHON) -c 'import torch, trl, datasets' 2>/dev/null && echo $(TORCH_PYTHON) || echo build/venv/bin/python) && \
	python3 scripts/bench_rival.py speed $(RIVAL) && python3 scripts/bench_rival.py small && \
	for part in sweep start load loss; do python3 scripts/bench_sweep.py $$part || exit 1; done && \
	python3 scripts/bench_rival.py table --write docs/performance.md && \
	python3 scripts/bench_sweep.py table --write docs/performance.md --plot docs/time.svg

lint:
	@sh scripts/lint.sh

format:
	@. scripts/clang-format.sh && find src cuda test bdpo-train.c -name '*.c' | xargs "$$CLANG_FORMAT" -i

asan: deps
	@$(MAKE) --no-print-directory BUILD=asan test-sanitized

# clang, because only libomp tells the thread sanitizer of its barriers; oneDNN is not instrumented and left out
tsan:
	@sh scripts/install-deps.sh build clang
	@TSAN_OPTIONS=ignore_noninstrumented_modules=1 $(MAKE) --no-print-directory BUILD=tsan CC=clang test-c

# what .ci/run runs: lint, both compilers with warnings as errors, all tests, the C tests under ASan and UBSan
ci:
	@bash scripts/ci.sh
# the same, and the tests built by clang, the thread sanitizer and the demo
ci-full:
	@bash scripts/ci.sh full

# a Python with what the outside judge needs (about 1 GB from the package index)
torch: build/venv/.done
build/venv/.done:
	@sh scripts/install-deps.sh venv
	python3 -m venv build/venv
	build/venv/bin/pip install --quiet torch transformers tokenizers safetensors numpy matplotlib tensorboard
	@touch $@

build/venv/.rival: build/venv/.done
	build/venv/bin/pip install --quiet trl datasets accelerate
	@touch $@

# each target of test/fuzz for FUZZ_SECONDS, from the committed seeds; what it finds stays in build/fuzz*/corpus, a crash in build/fuzz*
fuzz:
	@sh scripts/install-deps.sh build clang fuzz
	@$(MAKE) --no-print-directory BUILD=fuzz CC=clang fuzz-built
fuzz-built: $(FUZZ)
	@set -e; for f in $(FUZZ); do \
	    name=$${f##*/fuzz_}; mkdir -p $(O)/corpus/$$name; echo "fuzz $$name, $(FUZZ_SECONDS) s"; \
	    $$f -max_total_time=$(FUZZ_SECONDS) -timeout=10 -malloc_limit_mb=512 -rss_limit_mb=4096 -max_len=4096 -verbosity=0 -print_final_stats=1 \
	        -artifact_prefix=$(O)/ $(O)/corpus/$$name test/fuzz/seeds/$$name; \
	done

install: all
	install -d $(DESTDIR)$(PREFIX)/bin
	install -m 755 $(BIN) $(DESTDIR)$(PREFIX)/bin/bdpo-train

# keeps build/venv, which is long to make
clean:
	rm -rf build/release* build/debug* build/asan* build/tsan* build/fuzz* build/demo build/bdpo-train build/bdpo-train-bundle*

help:
	@printf '%s\n' \
	'make demo       install what is missing, build, and show DPO against BDPO on a task with right answers (about a minute)' \
	'make test       install what is missing, build, run all tests; ends with "N passed, N failed, N skipped"' \
	'make test-crash every call of the system fails or is the last one, four hundred kills (long)' \
	'make test-slurm the scripts of configs/slurm on a Slurm of one node made for it (as root, 5 minutes)' \
	'make            build build/bdpo-train' \
	'make deps       install the libraries that are missing (apt-get)' \
	'make test-mpi   whole jobs on several ranks under mpirun (make test runs them too)' \
	'make bench      speed of every operation and its share of the machine'"'"'s peak' \
	'make test-hosts jobs on several hosts made of network namespaces (as root)' \
	'make bench-ranks  memory, traffic and waiting of 1 to 8 ranks; the table of docs/clusters.md' \
	'make test-cuda  what only a CUDA device can show; make bench-cuda: the speed of every operation and of steps of whole models there' \
	'make bundle     build/bdpo-train-bundle.tar.xz: runs on another machine with nothing installed, on several ranks too' \
	'make bench-rival  speed and memory against TRL and a plain PyTorch loop, sweeps; the tables of docs/performance.md' \
	'make lint       layers, formatting, shell scripts, words' \
	'make format     format all C files in place' \
	'make asan       the C tests under the address and undefined-behaviour sanitizers' \
	'make tsan       the C tests under the thread sanitizer' \
	'make fuzz       each fuzz target for a minute (FUZZ_SECONDS) under the sanitizers, with clang' \
	'make ci         what the CI runs; make ci-full: more of it' \
	'make torch      a Python with PyTorch in build/venv, for the comparison that make test then runs' \
	'make install    copy bdpo-train to $$(PREFIX)/bin (/usr/local)' \
	'make clean      remove what was built' \
	'' \
	'variables       BUILD=release|debug|asan|tsan  CC=gcc|clang  CUDA=0|1  MPI=0|1  MPICC=mpicc  WERROR=1  V=1  PREFIX=DIR  TORCH_PYTHON=PYTHON'

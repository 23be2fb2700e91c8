/* Both element types of one instruction set. */
#define KIND fp32
#define T float
#define PAIR 1
#include "forward_kernels.h"
#undef KIND
#undef T
#undef PAIR
#define KIND bf16
#define T uint16_t
#define PAIR 2
#include "forward_kernels.h"
#undef KIND
#undef T
#undef PAIR

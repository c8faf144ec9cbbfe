// cuDNN's older interface: descriptors, sizes of workspaces, and how the weights of recurrent networks lie in memory.
//
// What cuDNN's kernels need for themselves is cuDNN's secret: convolutions get workspaces of 0 bytes, recurrent networks
// what willfit/_trace/cuda/recurrent.py assumes. The graph interface is off (TORCH_CUDNN_V8_API_DISABLED), and the
// version is one whose attention PyTorch does not use.
#include "emulator.h"
#include <stdlib.h>
#include <string.h>

EXPORT size_t cudnnGetVersion(void) { return 91000; }
EXPORT size_t cudnnGetCudartVersion(void) { return 13020; }
EXPORT const char *cudnnGetErrorString(int error) { return error ? "not emulated" : "success"; }
EXPORT int cudnnCreate(void **handle) { *handle = new_handle(); return SUCCESS; }
EXPORT int cudnnGetStream(void *handle, void **stream) { *stream = NULL; return SUCCESS; }

#define CREATE(name)                                                                                                  \
  EXPORT int cudnnCreate##name(void **description) { *description = new_handle(); return SUCCESS; }                   \
  EXPORT int cudnnDestroy##name(void *description) { free(description); return SUCCESS; }
CREATE(TensorDescriptor)
CREATE(FilterDescriptor)
CREATE(ConvolutionDescriptor)
CREATE(ActivationDescriptor)
CREATE(DropoutDescriptor)
CREATE(PoolingDescriptor)
CREATE(RNNDescriptor)
CREATE(RNNDataDescriptor)
CREATE(SpatialTransformerDescriptor)
CREATE(CTCLossDescriptor)

// -- tensors ---------------------------------------------------------------------------------------------------------

#define MOST_DIMENSIONS 8

struct tensor { int type, dimensions, size[MOST_DIMENSIONS], stride[MOST_DIMENSIONS]; };

EXPORT int cudnnSetTensorNdDescriptor(struct tensor *tensor, int type, int dimensions, const int *size, const int *stride) {
  tensor->type = type;
  tensor->dimensions = dimensions < MOST_DIMENSIONS ? dimensions : MOST_DIMENSIONS;
  memcpy(tensor->size, size, tensor->dimensions * sizeof *size);
  memcpy(tensor->stride, stride, tensor->dimensions * sizeof *stride);
  return SUCCESS;
}
EXPORT int cudnnGetTensorNdDescriptor(const struct tensor *tensor, int room, int *type, int *dimensions, int *size, int *stride) {
  int count = tensor->dimensions < room ? tensor->dimensions : room;
  *type = tensor->type;
  *dimensions = tensor->dimensions;
  memcpy(size, tensor->size, count * sizeof *size);
  memcpy(stride, tensor->stride, count * sizeof *stride);
  return SUCCESS;
}

// -- batch norm, dropout, CTC: no workspaces -------------------------------------------------------------------------

EXPORT int cudnnGetBatchNormalizationForwardTrainingExWorkspaceSize(
    void *handle, int mode, int op, void *x, void *z, void *y, void *scale, void *activation, size_t *size) {
  *size = 0;
  return SUCCESS;
}
EXPORT int cudnnGetBatchNormalizationBackwardExWorkspaceSize(
    void *handle, int mode, int op, void *x, void *y, void *dy, void *dz, void *dx, void *scale, void *activation, size_t *size) {
  *size = 0;
  return SUCCESS;
}
EXPORT int cudnnGetBatchNormalizationTrainingExReserveSpaceSize(
    void *handle, int mode, int op, void *activation, void *x, size_t *size) {
  *size = 0;
  return SUCCESS;
}
EXPORT int cudnnDropoutGetStatesSize(void *handle, size_t *size) { *size = 0; return SUCCESS; }
EXPORT int cudnnGetCTCLossWorkspaceSize(
    void *handle, void *probabilities, void *gradients, const int *labels, const int *label_lengths, const int *input_lengths,
    int algorithm, void *loss, size_t *size) {
  *size = 0;
  return SUCCESS;
}
EXPORT int cudnnGetCTCLossWorkspaceSize_v8(
    void *handle, int algorithm, void *loss, void *probabilities, void *gradients, size_t *size) {
  *size = 0;
  return SUCCESS;
}

// -- convolutions: the first algorithm, no workspace -----------------------------------------------------------------

struct performance {  // cudnnConvolution*AlgoPerf_t
  int algorithm, status;
  float time;
  size_t memory;
  int determinism, math, reserved[3];
};

#define CONVOLUTION(name)                                                                                             \
  EXPORT int cudnnGetConvolution##name##Algorithm_v7(                                                                 \
      void *handle, void *a, void *b, void *convolution, void *c, int asked, int *found, struct performance *results) { \
    memset(results, 0, sizeof *results);                                                                              \
    *found = 1;                                                                                                       \
    return SUCCESS;                                                                                                   \
  }                                                                                                                   \
  EXPORT int cudnnFindConvolution##name##AlgorithmEx(                                                                 \
      void *handle, void *a, void *a_data, void *b, void *b_data, void *convolution, void *c, void *c_data, int asked,  \
      int *found, struct performance *results, void *workspace, size_t size) {                                        \
    return cudnnGetConvolution##name##Algorithm_v7(handle, a, b, convolution, c, asked, found, results);              \
  }                                                                                                                   \
  EXPORT int cudnnGetConvolution##name##WorkspaceSize(                                                                \
      void *handle, void *a, void *b, void *convolution, void *c, int algorithm, size_t *size) {                      \
    *size = 0;                                                                                                        \
    return SUCCESS;                                                                                                   \
  }
CONVOLUTION(Forward)
CONVOLUTION(BackwardData)
CONVOLUTION(BackwardFilter)

// -- recurrent networks ----------------------------------------------------------------------------------------------

enum { RELU, TANH, LSTM, GRU };        // cudnnRNNMode_t
enum { NO_BIAS, ONE_BIAS, TWO_BIASES };  // cudnnRNNBiasMode_t: none, at the input, at both

struct network { int cell, bias, directions, type, input, hidden, projected, layers; };
struct sequences { size_t steps; };

static size_t item_size(int type) {  // cudnnDataType_t: float, double, half, ..., bfloat16
  return type == 1 ? 8 : type == 2 || type == 9 ? 2 : 4;
}
static int gates(const struct network *network) { return network->cell == LSTM ? 4 : network->cell == GRU ? 3 : 1; }
static int out_width(const struct network *network) { return network->projected ? network->projected : network->hidden; }

EXPORT int cudnnSetRNNDescriptor_v8(
    struct network *network, int algorithm, int cell, int bias, int direction, int input_mode, int type, int precision,
    int math, int input, int hidden, int projected, int layers, void *dropout, unsigned flags) {
  *network = (struct network){cell, bias, direction + 1, type, input, hidden, projected == hidden ? 0 : projected, layers};
  return SUCCESS;
}
EXPORT int cudnnSetRNNDataDescriptor(
    struct sequences *sequences, int type, int layout, int longest, int batch, int width, const int *lengths, void *padding) {
  sequences->steps = 0;
  for (int i = 0; i < batch; i++) sequences->steps += lengths[i];
  return SUCCESS;
}

// The matrices of one layer in one direction: of the input by gates, then of the hidden state, then the projection.
static size_t rows(const struct network *network, int matrix) {
  return matrix == 2 * gates(network) ? network->projected : network->hidden;
}
static size_t columns(const struct network *network, int layer, int matrix) {
  if (matrix == 2 * gates(network)) return network->hidden;
  if (matrix >= gates(network)) return out_width(network);
  return layer / network->directions == 0 ? network->input : out_width(network) * network->directions;
}
static int matrices(const struct network *network) { return 2 * gates(network) + (network->projected ? 1 : 0); }
static int biases(const struct network *network) {
  return network->bias == NO_BIAS ? 0 : network->bias == TWO_BIASES ? 2 * gates(network) : gates(network);
}

// Where a layer's matrix begins, in elements; that of the first layer after the last is the sum of all.
static size_t offset(const struct network *network, int layer, int matrix) {
  size_t elements = 0;
  for (int l = 0; l <= layer; l++)
    for (int m = 0; m < (l == layer ? matrix : matrices(network)); m++) elements += rows(network, m) * columns(network, l, m);
  return elements;
}

static int pseudo_layers(const struct network *network) { return network->layers * network->directions; }

EXPORT int cudnnGetRNNWeightSpaceSize(void *handle, const struct network *network, size_t *size) {
  size_t elements = offset(network, pseudo_layers(network), 0);
  elements += (size_t)pseudo_layers(network) * biases(network) * network->hidden;
  *size = elements * item_size(network->type);
  return SUCCESS;
}
static void describe(struct tensor *tensor, void **address, int type, int height, int width, char *start) {
  if (tensor && start) cudnnSetTensorNdDescriptor(tensor, type, 3, (int[]){1, height, width}, (int[]){height * width, width, 1});
  if (tensor && !start) memset(tensor, 0, sizeof *tensor);
  if (address) *address = start;
}

EXPORT int cudnnGetRNNWeightParams(  // either of the two may be asked for alone
    void *handle, const struct network *network, int layer, size_t size, char *weights, int matrix,
    struct tensor *matrix_tensor, void **matrix_address, struct tensor *bias_tensor, void **bias_address) {
  size_t item = item_size(network->type), all_matrices = offset(network, pseudo_layers(network), 0);
  int is_projection = network->projected && matrix == 8;
  int index = is_projection ? 2 * gates(network) : matrix;
  int has_bias = !is_projection && matrix < biases(network);
  size_t before_bias = all_matrices + ((size_t)layer * biases(network) + matrix) * network->hidden;
  describe(matrix_tensor, matrix_address, network->type, (int)rows(network, index), (int)columns(network, layer, index),
           weights + offset(network, layer, index) * item);
  describe(bias_tensor, bias_address, network->type, network->hidden, 1, has_bias ? weights + before_bias * item : NULL);
  return SUCCESS;
}
EXPORT int cudnnGetRNNTempSpaceSizes(
    void *handle, const struct network *network, int training, const struct sequences *sequences, size_t *workspace, size_t *reserve) {
  size_t states = sequences->steps * network->directions * network->hidden * item_size(network->type);
  *workspace = states * gates(network);
  if (reserve) *reserve = training ? states * network->layers * (gates(network) + 2) : 0;
  return SUCCESS;
}

// A second device for tests without a GPU: memory of the host under the name of another device.
//
// Every operator runs on the CPU, on the same memory, after a check that CUDA makes too: all tensors are on the device.
// CUDA's exceptions are allowed: scalars of zero dimensions as operands, indices on the CPU, copies.
// What makes a host wait for a GPU is counted by name: torch.ops.strict.waits().
#include <ATen/EmptyTensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/ops/convolution.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/resize_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/DeviceType.h>
#include <torch/library.h>

#include <map>
#include <mutex>
#include <set>

using at::Tensor;
constexpr auto KIND = c10::DeviceType::PrivateUse1;
#include "device_guard.h"

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
};
static Hooks hooks;

struct Memory final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    auto memory = c10::GetCPUAllocator()->allocate(bytes);
    auto deleter = memory.get_deleter();
    void* data = memory.get();
    return {data, memory.release_context(), deleter, DEVICE};
  }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }
};
static Memory memory;

static std::map<std::string, int64_t> counts;
static std::mutex lock;
static void count(const std::string& name) {
  std::lock_guard<std::mutex> hold(lock);
  counts[name]++;
}

static bool on_device(const Tensor& t) { return t.defined() && t.device().type() == KIND; }

static Tensor on_cpu(const Tensor& t) {
  if (!on_device(t)) return t;
  auto options = at::TensorOptions().dtype(t.dtype()).device(at::kCPU);
  if (t.numel() == 0) return at::empty(t.sizes(), options);  // may be resized
  return at::for_blob(t.data_ptr(), t.sizes())
      .strides(t.strides())
      .options(options)
      .resizeable_storage()
      .allocator(c10::GetCPUAllocator())
      .make_tensor();
}

static Tensor to_device(const Tensor& t) {
  auto options = at::TensorOptions().dtype(t.dtype()).device(DEVICE);
  if (!t.defined()) return t;
  if (t.numel() == 0) return at::empty(t.sizes(), options);
  return at::from_blob(t.data_ptr(), t.sizes(), t.strides(), [t](void*) {}, options, DEVICE);
}

[[noreturn]] static void mixed(const std::string& name) {
  TORCH_CHECK(false, "Expected all tensors to be on the same device, but ", name, " got tensors on cpu and on strict:0");
}

static void fallback(const c10::OperatorHandle& op, c10::DispatchKeySet, torch::jit::Stack* stack) {
  static const std::set<std::string> WAITS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select",
      "aten::equal", "aten::is_nonzero", "aten::_unique2", "aten::unique_dim", "aten::unique_consecutive"};
  const auto& schema = op.schema();
  const std::string name = schema.name();
  const bool indexed = name.find("aten::index") == 0 || name.find("aten::_index_put") == 0;
  if (WAITS.count(name)) count(name);
  const size_t first = stack->size() - schema.arguments().size();
  std::vector<std::pair<Tensor, Tensor>> pairs;  // on the device, and the same memory on the CPU
  bool device = false, cpu = false;
  auto take = [&](const Tensor& t, bool in_list) {
    if (!t.defined()) return t;
    if (!on_device(t)) {
      cpu |= indexed && in_list ? false : in_list || t.dim() > 0;
      return t;
    }
    device = true;
    pairs.emplace_back(t, on_cpu(t));
    return pairs.back().second;
  };
  for (size_t i = first; i < stack->size(); i++) {
    auto& value = (*stack)[i];
    if (value.isTensor()) {
      value = take(value.toTensor(), false);
    } else if (value.isTensorList()) {
      std::vector<Tensor> list;
      for (const Tensor& t : value.toTensorVector()) list.push_back(take(t, true));
      value = c10::List<Tensor>(list);
    } else if (value.isOptionalTensorList()) {
      c10::List<std::optional<Tensor>> list;
      for (const std::optional<Tensor>& t : value.toOptionalTensorVector()) {
        if (t && on_device(*t) && t->scalar_type() == at::kBool) count(name + " with a mask");
        list.push_back(t ? std::optional<Tensor>(take(*t, true)) : t);
      }
      value = list;
    } else if (value.isDevice()) {
      value = c10::IValue(Device(at::kCPU));
    }
  }
  if (device && cpu) mixed(name);
  op.callBoxed(stack);
  for (auto& [ours, theirs] : pairs) {
    if (theirs.numel() && theirs.data_ptr() != ours.data_ptr()) {  // an output that was resized
      if (theirs.sizes() != ours.sizes()) ours.resize_(theirs.sizes());
      on_cpu(ours).copy_(theirs);
    }
  }
  auto give = [&](const Tensor& t) {
    for (auto& [ours, theirs] : pairs)
      if (t.defined() && t.unsafeGetTensorImpl() == theirs.unsafeGetTensorImpl()) return ours;
    return to_device(t);
  };
  for (size_t i = stack->size() - schema.returns().size(); i < stack->size(); i++) {
    auto& value = (*stack)[i];
    if (value.isTensor()) {
      value = give(value.toTensor());
    } else if (value.isTensorList()) {
      std::vector<Tensor> list;
      for (const Tensor& t : value.toTensorVector()) list.push_back(give(t));
      value = c10::List<Tensor>(list);
    }
  }
}
TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>()); }

using Sizes = at::IntArrayRef;
using Dtype = std::optional<at::ScalarType>;

static Tensor empty(Sizes size, Dtype dtype, std::optional<at::Layout>, std::optional<Device>, std::optional<bool>,
                    std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(size, &memory, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                   c10::dtype_or_default(dtype), format);
}

static Tensor empty_strided(Sizes size, Sizes stride, Dtype dtype, std::optional<at::Layout>, std::optional<Device>,
                            std::optional<bool>) {
  return at::detail::empty_strided_generic(size, stride, &memory,
                                           c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                           c10::dtype_or_default(dtype));
}

static Tensor copy_from(const Tensor& from, const Tensor& to, bool non_blocking) {
  if (on_device(from) && !on_device(to)) count("copy to the host");
  if (!on_device(from) && on_device(to) && !non_blocking && from.dim() > 0) count("copy to the device");
  on_cpu(to).copy_(on_cpu(from));
  return to;
}

static Tensor convolution(const Tensor& x, const Tensor& w, const std::optional<Tensor>& b, Sizes stride, Sizes padding,
                          Sizes dilation, bool transposed, Sizes output_padding, int64_t groups) {
  if (!on_device(x) || !on_device(w) || (b && b->defined() && !on_device(*b))) mixed("aten::convolution");
  auto bias = b ? std::optional<Tensor>(on_cpu(*b)) : b;
  return to_device(at::convolution(on_cpu(x), on_cpu(w), bias, stride, padding, dilation, transposed, output_padding,
                                   groups));
}

static std::tuple<Tensor, Tensor, Tensor> convolution_backward(
    const Tensor& grad, const Tensor& x, const Tensor& w, Sizes stride, Sizes padding, Sizes dilation, bool transposed,
    Sizes output_padding, int64_t groups, std::array<bool, 3> mask) {
  if (!on_device(grad) || !on_device(x) || !on_device(w)) mixed("aten::convolution_backward");
  const int64_t bias = transposed ? w.size(1) * groups : w.size(0);
  auto [a, b, c] = at::convolution_backward(on_cpu(grad), on_cpu(x), on_cpu(w), at::OptionalIntArrayRef({bias}), stride,
                                            padding, dilation, transposed, output_padding, groups, mask);
  return {to_device(a), to_device(b), to_device(c)};
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("_copy_from", copy_from);
  m.impl("as_strided", at::native::as_strided_tensorimpl);
  m.impl("view", at::native::view);
  m.impl("_reshape_alias", at::native::_reshape_alias);
  m.impl("unfold", at::native::unfold);
  m.impl("resize_", at::native::resize_);
  m.impl("set_.source_Storage_storage_offset", at::native::set_storage_cpu_);
  m.impl("convolution_overrideable", convolution);
  m.impl("convolution_backward_overrideable", convolution_backward);
}

static c10::Dict<std::string, int64_t> waits() {
  c10::Dict<std::string, int64_t> found;
  std::lock_guard<std::mutex> hold(lock);
  for (auto& [name, number] : counts) found.insert(name, number);
  counts.clear();
  return found;
}

static void begin() {
  at::RegisterPrivateUse1HooksInterface(&hooks);
  c10::SetAllocator(KIND, &memory);
}

TORCH_LIBRARY(strict, m) {
  m.def("waits() -> Dict(str, int)", waits);
  m.def("begin() -> ()", begin);
}

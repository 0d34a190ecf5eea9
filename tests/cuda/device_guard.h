// A device guard that does nothing, for the device type KIND, which whoever includes this defines.
#include <c10/core/impl/DeviceGuardImplInterface.h>

using c10::Device;
using c10::Stream;
const Device DEVICE(KIND, 0);

struct Guard final : c10::impl::NoOpDeviceGuardImpl<KIND> {
  Device exchangeDevice(Device) const override { return DEVICE; }
  Device getDevice() const override { return DEVICE; }
  Stream getStream(Device) const noexcept override { return Stream(Stream::DEFAULT, DEVICE); }
  Stream getNewStream(Device, int = 0) const override { return Stream(Stream::DEFAULT, DEVICE); }
  Stream exchangeStream(Stream) const noexcept override { return Stream(Stream::DEFAULT, DEVICE); }
};
static Guard guard;
static c10::impl::DeviceGuardImplRegistrar registrar(KIND, &guard);

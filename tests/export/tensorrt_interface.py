"""What our code touches of TensorRT, as the bindings write it: names, members, signatures.

One table for NVIDIA TensorRT 10.13 and 11 and for TensorRT for RTX. A call that is not in it fails
`test_tensorrt_bindings.py`, and so does an entry that one of the three has not or has otherwise.
"""

ENUMS = {
    "BuilderFlag": "DISABLE_TIMING_CACHE EDITABLE_TIMING_CACHE EXCLUDE_LEAN_RUNTIME REFIT "
    "REFIT_IDENTICAL STRIP_PLAN TF32 VERSION_COMPATIBLE",
    "ComputeCapability": "CURRENT SM75 SM80 SM86 SM89 SM120 SM121",
    "CudaGraphStrategy": "DISABLED WHOLE_GRAPH_CAPTURE",
    "DataType": "BF16 BOOL FLOAT HALF INT8 INT32 INT64 UINT8",
    "ErrorCode": "SUCCESS UNSUPPORTED_NODE",
    "ExecutionContextAllocationStrategy": "STATIC USER_MANAGED",
    "HardwareCompatibilityLevel": "AMPERE_PLUS NONE SAME_COMPUTE_CAPABILITY",
    "LayerInformationFormat": "JSON ONELINE",
    "MemoryPoolType": "TACTIC_DRAM WORKSPACE",
    "NetworkDefinitionCreationFlag": "STRONGLY_TYPED",
    "ProfilingVerbosity": "DETAILED LAYER_NAMES_ONLY NONE",
    "SerializationFlag": "EXCLUDE_LEAN_RUNTIME EXCLUDE_WEIGHTS",
    "TensorIOMode": "INPUT OUTPUT",
    "TensorLocation": "DEVICE HOST",
}

CLASSES = {
    "ILogger": {
        "__init__": "() -> None",
        "log": "(severity: ILogger.Severity, msg: str) -> None",
        "ERROR": "",
        "INFO": "",
        "INTERNAL_ERROR": "",
        "VERBOSE": "",
        "WARNING": "",
    },
    "IProgressMonitor": {
        "__init__": "() -> None",
        "phase_start": "(phase_name: str, parent_phase: str, num_steps: int) -> None",
        "step_complete": "(phase_name: str, step: int) -> bool",
        "phase_finish": "(phase_name: str) -> None",
    },
    "IOutputAllocator": {
        "__init__": "() -> None",
        "reallocate_output": "(tensor_name, memory, size, alignment)",
        "reallocate_output_async": "(tensor_name, memory, size, alignment, stream)",
        "notify_shape": "(tensor_name, shape)",
    },
    "IProfiler": {
        "__init__": "() -> None",
        "report_layer_time": "(layer_name: str, ms: float) -> None",
    },
    "Builder": {
        "__init__": "(logger: ILogger) -> None",
        "create_network": "(flags: int = 0) -> INetworkDefinition",
        "create_builder_config": "() -> IBuilderConfig",
        "create_optimization_profile": "() -> IOptimizationProfile",
        "get_plugin_registry": "() -> IPluginRegistry",
        "build_serialized_network": (
            "(network: INetworkDefinition, config: IBuilderConfig) -> IHostMemory"
        ),
    },
    "INetworkDefinition": {
        "num_inputs": "int",
        "num_outputs": "int",
        "num_layers": "int",
        "get_input": "(index: int) -> ITensor",
        "get_output": "(index: int) -> ITensor",
        "get_layer": "(index: int) -> ILayer",
    },
    "OnnxParser": {
        "__init__": "(network: INetworkDefinition, logger: ILogger) -> None",
        "parse_from_file": "(model: str) -> bool",
        "num_errors": "int",
        "get_error": "(index: int) -> IParserError",
        "supports_model_v2": "(model: buffer, path: str = None) -> bool",
        "supports_operator": "(op_name: str) -> bool",
        "get_used_vc_plugin_libraries": "() -> list[str]",
    },
    "ParserError": {
        "code": "() -> ErrorCode",
        "desc": "() -> str",
        "node": "() -> int",
        "node_name": "() -> str",
        "node_operator": "() -> str",
    },
    "IBuilderConfig": {
        "set_flag": "(flag: BuilderFlag) -> None",
        "clear_flag": "(flag: BuilderFlag) -> None",
        "get_flag": "(flag: BuilderFlag) -> bool",
        "set_memory_pool_limit": "(pool: MemoryPoolType, pool_size: int) -> None",
        "builder_optimization_level": "int, settable",
        "progress_monitor": "IProgressMonitor, settable",
        "hardware_compatibility_level": "HardwareCompatibilityLevel, settable",
        "profiling_verbosity": "ProfilingVerbosity, settable",
        "plugins_to_serialize": "list[str], settable",
        "add_optimization_profile": "(profile: IOptimizationProfile) -> int",
        "num_optimization_profiles": "int",
        "create_timing_cache": "(serialized_timing_cache: buffer) -> ITimingCache",
        "set_timing_cache": "(cache: ITimingCache, ignore_mismatch: bool) -> bool",
        "get_timing_cache": "() -> ITimingCache",
        "num_compute_capabilities": "int, settable",
        "set_compute_capability": "(compute_capability: ComputeCapability, index: int) -> bool",
    },
    "IOptimizationProfile": {"set_shape": "(input: str, min: Dims, opt: Dims, max: Dims) -> None"},
    "ITimingCache": {"serialize": "() -> IHostMemory"},
    "IHostMemory": {"nbytes": "int"},
    "Runtime": {
        "__init__": "(logger: ILogger) -> None",
        "deserialize_cuda_engine": "(serialized_engine: buffer) -> ICudaEngine",
        "engine_host_code_allowed": "bool, settable",
        "get_plugin_registry": "() -> IPluginRegistry",
        "get_engine_validity": "(buffer: buffer) -> tuple",
    },
    "Refitter": {
        "__init__": "(engine: ICudaEngine, logger: ILogger) -> None",
        "refit_cuda_engine": "() -> bool",
        "get_all_weights": "() -> list[str]",
        "get_missing_weights": "() -> list[str]",
        "set_named_weights": "(name: str, weights: Weights) -> bool",
    },
    "OnnxParserRefitter": {
        "__init__": "(refitter: Refitter, logger: ILogger) -> None",
        "refit_from_file": "(model: str) -> bool",
        "num_errors": "int",
        "get_error": "(index: int) -> ParserError",
    },
    "IPluginRegistry": {
        "load_library": "(plugin_path: str) -> capsule",
        "deregister_library": "(handle: capsule) -> None",
    },
    "ICudaEngine": {
        "num_io_tensors": "int",
        "num_layers": "int",
        "num_optimization_profiles": "int",
        "device_memory_size_v2": "int",
        "refittable": "bool",
        "get_tensor_name": "(index: int) -> str",
        "get_tensor_mode": "(name: str) -> TensorIOMode",
        "get_tensor_dtype": "(name: str) -> DataType",
        "get_tensor_shape": "(name: str) -> Dims",
        "get_tensor_location": "(name: str) -> TensorLocation",
        "get_tensor_profile_shape": "(name: str, profile_index: int) -> list[Dims]",
        "is_shape_inference_io": "(name: str) -> bool",
        "create_execution_context": (
            "(strategy: ExecutionContextAllocationStrategy = "
            "<ExecutionContextAllocationStrategy.STATIC: 0>) -> IExecutionContext"
        ),
        "create_engine_inspector": "() -> EngineInspector",
        "create_runtime_config": "() -> IRuntimeConfig",
        "serialize": "() -> IHostMemory",
        "create_serialization_config": "() -> ISerializationConfig",
        "serialize_with_config": "(arg0: ISerializationConfig) -> IHostMemory",
    },
    "ISerializationConfig": {
        "set_flag": "(flag: SerializationFlag) -> bool",
        "clear_flag": "(flag: SerializationFlag) -> bool",
    },
    "IRuntimeConfig": {
        "cuda_graph_strategy": "CudaGraphStrategy, settable",
        "create_runtime_cache": "() -> IRuntimeCache",
        "set_runtime_cache": "(cache: IRuntimeCache = None) -> bool",
    },
    "IExecutionContext": {
        "set_input_shape": "(name: str, shape: tuple) -> bool",
        "set_tensor_address": "(name: str, memory: int) -> bool",
        "set_output_allocator": "(name: str, output_allocator: IOutputAllocator) -> bool",
        "set_optimization_profile_async": "(profile_index: int, stream_handle: int) -> bool",
        "active_optimization_profile": "int",
        "get_tensor_shape": "(name: str) -> Dims",
        "infer_shapes": "() -> list[str]",
        "execute_async_v3": "(stream_handle: int) -> bool",
        "set_device_memory": "(memory: int, size: int) -> None",
        "profiler": "IProfiler, settable",
        "enqueue_emits_profile": "bool, settable",
    },
    "EngineInspector": {
        "execution_context": "IExecutionContext, settable",
        "get_engine_information": "(format: LayerInformationFormat) -> str",
        "get_layer_information": "(layer_index: int, format: LayerInformationFormat) -> str",
    },
}
"""Methods by signature, properties by type, constants by nothing; of overloads, the one in use.

pybind11's spellings of one type are made one by the probe: `int`, `buffer`, `list`.
"""

MODULE = ("__version__", "init_libnvinfer_plugins", "get_plugin_registry")

GONE = {"FP16", "BF16", "INT8", "OBEY_PRECISION_CONSTRAINTS", "PREFER_PRECISION_CONSTRAINTS"}
"""Builder flags of version 10 that 11 and RTX lack: precision is in the graph alone."""

VARIABLES = {
    "builder": "Builder",
    "cache": "ITimingCache",
    "config": "IBuilderConfig",
    "context": "IExecutionContext",
    "engine": "ICudaEngine",
    "inspector": "EngineInspector",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "plan": "IHostMemory",
    "profile": "IOptimizationProfile",
    "refitter": "Refitter",
    "registry": "IPluginRegistry",
    "runtime": "Runtime",
}
"""What our functions call those of TensorRT's objects that they are given, annotated `Any`."""

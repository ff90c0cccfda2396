"""lm-eval, as far as this package knows more of it than its model and task classes: a port to another release is this
room, the model classes of `backends` and the task class of `metrics`.

`facts` and the modules beside it lie low: engine, statistics and sweep use them, in our words. `hooks` is the top
floor, which lm-eval reaches by dotted name alone.

What is touched, why, and how it differs from 0.4.13 on main (4e7e0d4, the newest that was read) and on the branch for
5.0 (pull request 3690, e7e6bc6); "-": not at all. On 5.x our model types refuse to start (`hooks.models`).

    of lm_eval                        here                why                main   5.0 branch
    api.instance: Instance            facts.requests      requests by hand,  -      task_name, doc_id needed;
                                                          copies                    metadata is a dict
    api.metrics: acc_all, mean,       facts.aggregations  resampling by      -      acc_all gone
      nanmean, perplexity,                                arithmetic
      weighted_perplexity,
      bits_per_byte
    api.registry:                     facts.aggregations  names in results   -      an alias
      AGGREGATION_REGISTRY                                files
    api.registry: model_registry,     hooks.registration  our model types    -      get_metric gone
      load_plugins
    api.model: CacheHook              facts.requests      sweeps write no    -      -
                                                          cache
    models.utils:                     facts.generation    limits and stops   -      -
      normalize_gen_kwargs,
      handle_stop_sequences,
      postprocess_generated_text
    models.utils_hf: pad_and_concat,  facts.batches       batches as HFLM's  -      -
      stop_sequences_criteria
    utils: get_rolling_token_windows, model               rolling requests   -      their results are pairs
      make_disjoint_window
    api.task: Task, its _filters,     facts.scoring,      prompts, splits,   -      scorers own the filters;
      _metric_fn_list,                fewshot, bindings,  scores                    construct_requests(doc_id=,
      multiple_input, sampler,        prompts, fields,                              metadata=dict);
      fewshot_cfg, doc_to_prefix,     splits                                        process_results may be None;
      build_all_requests                                                            doc_to_prefix and
                                                                                    _metric_fn_list gone;
                                                                                    multiple_input, fewshot_cfg
                                                                                    renamed
    api.utils: maybe_delimit          prompts             answers after a    -      in api._utils
                                                          prefix
    utils: apply_template, env        fields              fields of a        -      in config.templates, without
                                                          template                  env
    tasks.manager: TaskManager        task_index          tasks by name      -      task_index is _task_index
    tasks._yaml_loader: load_yaml     task_index,         tasks by file      -      -
                                      other_task
    _cli.utils: split_top_level       arguments           arguments given    absent absent
                                                          twice
    loggers: EvaluationTracker        evaluation          files of a run     -      -
    loggers.evaluation_tracker:       hooks.models        screen and judges  -      -
      EvaluationTracker                                   after a run
    utils: setup_logging,             evaluation          log, folder names  -      -
      sanitize_model_name
    evaluator: simple_evaluate, its   evaluation,         runs from Python;  -      -
      frame                           task_index          arguments of the
                                                          one that runs
    api.task: ConfigurableTask        metrics.limited     our task class     -      an alias of Task; metric
                                                                                    names reserved by output type
    api.filter: Filter                metrics.filters     AsWritten          -      must give a list a request:
                                                                                    of a text, its characters
    models.huggingface: HFLM          backends.hf         model class        -      -
    models.vllm_causallms: VLLM       backends.vllm       model class        -      -
    utils: simple_parse_args_string,  backends            arguments, a       -      -
      warning_once                                        warning
"""

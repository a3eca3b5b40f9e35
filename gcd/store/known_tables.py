"""The tables and columns of MLflow in every revision that gcd knows, and the revision that brought each table.

Made by MLflow's own migrations, 0.9.1 to 3.18; a test climbs them and compares.
"""

from __future__ import annotations

from collections.abc import Mapping

BASE = "base"
"""What brought the tables of 0.9.1, which noted no revision."""
TEXT = """
experiments base
    experiment_id name artifact_location lifecycle_stage creation_time last_update_time
    workspace
metrics base
    key value timestamp run_uuid step is_nan
params base
    key value run_uuid
runs base
    run_uuid name source_type source_name entry_point_name user_id status start_time
    end_time source_version lifecycle_stage artifact_uri experiment_id deleted_time
tags base
    key value run_uuid
experiment_tags df50e92ffc5e
    key value experiment_id
latest_metrics 89d4b8295536
    key value timestamp step is_nan run_uuid
model_versions 2b4d017a5e9b
    name version creation_time last_updated_time description user_id current_stage source
    run_id status status_message run_link storage_location workspace
registered_models 2b4d017a5e9b
    name creation_time last_updated_time description workspace
registered_model_tags 728d730b5ebd
    key value name workspace
model_version_tags 27a6a02d2cf1
    key value name version workspace
registered_model_aliases 3500859a5d39
    alias version name workspace
datasets 7f2a7d5fae7d
    dataset_uuid experiment_id name digest dataset_source_type dataset_source dataset_schema
    dataset_profile
input_tags 7f2a7d5fae7d
    input_uuid name value
inputs 7f2a7d5fae7d
    input_uuid source_type source_id destination_type destination_id step
trace_info 867495a8f9d4
    request_id experiment_id timestamp_ms execution_time_ms status client_request_id
    request_preview response_preview db_payload_generation trace_name session_id
    input_tokens output_tokens total_tokens cache_read_input_tokens
    cache_creation_input_tokens cache_creation_input_tokens_above_1hr input_cost output_cost
    total_cost
trace_request_metadata 867495a8f9d4
    key value request_id
trace_tags 867495a8f9d4
    key value request_id
logged_model_metrics 400f98739977
    model_id metric_name metric_timestamp_ms metric_step metric_value experiment_id run_id
    dataset_uuid dataset_name dataset_digest
logged_model_params 400f98739977
    model_id experiment_id param_key param_value
logged_model_tags 400f98739977
    model_id experiment_id tag_key tag_value
logged_models 400f98739977
    model_id experiment_id name artifact_location creation_timestamp_ms
    last_updated_timestamp_ms status lifecycle_stage model_type source_run_id status_message
assessments 770bee3ae1dd
    assessment_id trace_id name assessment_type value error created_timestamp
    last_updated_timestamp source_type source_id run_id span_id rationale overrides valid
    assessment_metadata experiment_id trace_timestamp_ms aggregate_value is_numeric_value
spans a1b2c3d4e5f6
    trace_id experiment_id span_id parent_span_id name type status start_time_unix_nano
    end_time_unix_nano duration_ns content dimension_attributes input_cost output_cost
    total_cost model_name model_provider
entity_associations de4033877273
    association_id source_type source_id destination_type destination_id created_time
webhook_events 1a0cddfcaa16
    webhook_id entity action
webhooks 1a0cddfcaa16
    webhook_id name description url status secret creation_timestamp last_updated_timestamp
    deleted_timestamp workspace
scorer_versions 534353b11cbc
    scorer_id scorer_version serialized_scorer creation_time
scorers 534353b11cbc
    experiment_id scorer_name scorer_id
evaluation_dataset_records 71994744cf8e
    dataset_record_id dataset_id inputs expectations tags source source_id source_type
    created_time last_update_time created_by last_updated_by input_hash outputs
evaluation_dataset_tags 71994744cf8e
    dataset_id key value
evaluation_datasets 71994744cf8e
    dataset_id name schema profile digest created_time last_update_time created_by
    last_updated_by workspace
jobs bf29a5ff90ea
    id creation_time function_fullname params timeout status result retry_count
    last_update_time job_name workspace status_details creator executor_backend
    lease_expires_at status_message progress progress_updated_at token_hash
    scoped_permissions next_attempt_at
endpoint_bindings 1bd49d398cd23
    endpoint_id resource_type resource_id created_at created_by last_updated_at
    last_updated_by display_name
endpoint_model_mappings 1bd49d398cd23
    mapping_id endpoint_id model_definition_id weight created_by created_at linkage_type
    fallback_order
endpoint_tags 1bd49d398cd23
    key value endpoint_id
endpoints 1bd49d398cd23
    endpoint_id name created_by created_at last_updated_by last_updated_at routing_strategy
    fallback_config_json experiment_id usage_tracking workspace
model_definitions 1bd49d398cd23
    model_definition_id name secret_id provider model_name created_by created_at
    last_updated_by last_updated_at workspace
secrets 1bd49d398cd23
    secret_id secret_name encrypted_value wrapped_dek kek_version masked_value provider
    auth_config description created_by created_at last_updated_by last_updated_at workspace
trace_metrics b7c8d9e0f1a2
    request_id key value
online_scoring_configs 2c33131f4dae
    online_scoring_config_id scorer_id sample_rate experiment_id filter_string
span_metrics c8d9e0f1a2b3
    trace_id span_id key value
workspaces 1b5f0d9ad7c1
    name description default_artifact_root trace_archival_location trace_archival_retention
budget_policies e1f2a3b4c5d6
    budget_policy_id budget_unit budget_amount duration_unit duration_value target_scope
    budget_action created_by created_at last_updated_by last_updated_at workspace
    target_value
issues 76601a5f987d
    issue_id experiment_id name description status severity root_causes source_run_id
    categories created_timestamp last_updated_timestamp created_by last_seen_timestamp
    last_updated_by metadata
guardrail_configs ae8bbe7743c9
    endpoint_id guardrail_id execution_order created_by created_at workspace
guardrails ae8bbe7743c9
    guardrail_id name scorer_id scorer_version stage action action_endpoint_id created_by
    created_at last_updated_by last_updated_at workspace
label_schemas 89d3d66ed43f
    schema_id experiment_id name type instruction enable_comment input_type input_config
    created_by created_time last_update_time is_default
review_queue_items b7e4c1a90f23
    queue_id item_type item_id status completed_by completed_time_ms creation_time_ms
    last_update_time_ms
review_queue_label_schemas b7e4c1a90f23
    queue_id schema_id
review_queue_users b7e4c1a90f23
    queue_id user_id
review_queues b7e4c1a90f23
    queue_id experiment_id name queue_type created_by creation_time_ms last_update_time_ms
    name_key
mcp_access_endpoints a8b9c0d1e2f3
    id workspace server_name server_version server_alias url transport_type created_by
    last_updated_by created_at last_updated_at
mcp_server_aliases a8b9c0d1e2f3
    workspace name alias version
mcp_server_tags a8b9c0d1e2f3
    workspace name key value
mcp_server_version_tags a8b9c0d1e2f3
    workspace name version key value
mcp_server_versions a8b9c0d1e2f3
    workspace name version version_major version_minor version_patch
    version_prerelease_sort_key server_json status tools source connect_options created_by
    last_updated_by created_at last_updated_at
mcp_servers a8b9c0d1e2f3
    workspace name display_name description icons created_by last_updated_by created_at
    last_updated_at
sql_assessment_daily_rollups 75868b020152
    id experiment_id rollup_day metric_name grouping_set sample_count sum_value min_value
    max_value
sql_span_cost_daily_rollups 75868b020152
    id experiment_id rollup_day metric_name grouping_set model_name model_provider
    sample_count sum_value min_value max_value
sql_trace_metric_daily_rollups 75868b020152
    id experiment_id rollup_day metric_name grouping_set trace_status sample_count sum_value
    min_value max_value p50_value p90_value p99_value
sql_trace_rollup_rebuild_queue 75868b020152
    experiment_id rollup_day rollup_family
job_locks dc11669786a5
    lock_key job_id acquired_at
scheduler_leases dc11669786a5
    lease_key acquired_at ttl_seconds
skill_aliases e7d1f4b2a9c6
    workspace organization name alias version
skill_tags e7d1f4b2a9c6
    workspace organization name key value
skill_version_tags e7d1f4b2a9c6
    workspace organization name version key value
skill_versions e7d1f4b2a9c6
    workspace organization name version source_type source ref subpath digest status
    created_by last_updated_by created_at last_updated_at
skills e7d1f4b2a9c6
    workspace organization name description icons search_text created_by last_updated_by
    created_at last_updated_at
issue_categories 8b6ad64cb8f5
    issue_id category_hash category
"""
"""A table and its revision in a line, its columns indented below it."""


def _parsed(text: str) -> tuple[dict[str, frozenset[str]], dict[str, str]]:
    columns: dict[str, frozenset[str]] = {}
    born: dict[str, str] = {}
    table = ""
    for line in text.strip().splitlines():
        if line.startswith(" "):
            columns[table] |= frozenset(line.split())
        else:
            table, born[table] = line.split()
            columns[table] = frozenset()
    return columns, born


_columns, _born = _parsed(TEXT)
COLUMNS: Mapping[str, frozenset[str]] = _columns
"""Table to every column that it has or had."""
BORN: Mapping[str, str] = _born
"""Table to the revision that brought it."""

# What Slurm calls the tasks of a step, in the words of torch. For jobs with a task for each GPU and no launcher:
#     srun bash -c '. examples/slurm/ranks.sh; coterie train cifar100/mcl_okd --out "runs/$SLURM_JOB_ID"'
export RANK="$SLURM_PROCID"
export WORLD_SIZE="$SLURM_NTASKS"
export LOCAL_RANK="$SLURM_LOCALID"
export LOCAL_WORLD_SIZE="${SLURM_NTASKS_PER_NODE:-$((SLURM_NTASKS / SLURM_NNODES))}"
export MASTER_ADDR="${MASTER_ADDR:-$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)}"
export MASTER_PORT="${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 20000))}"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}"
export COTERIE_LAUNCH="${COTERIE_LAUNCH:-$SLURM_JOB_ID}"  # a job that is put back goes on with its run

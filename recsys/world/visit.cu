// What one visit is shown and how the user responds, one visit a row. Everything per impression is here, once, for
// CPU and GPU; what is per user, per visit or per video comes from population.py and behaviour.py as tables.
// The struct Constants is declared by behaviour.py, in front of this text.

INNER u64 mix(u64 x) {
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ULL;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBULL;
    return x ^ (x >> 31);
}

INNER u64 extend(u64 key, i64 part) { return mix(key + (u64)(part + 1) * 0x9E3779B97F4A7C15ULL); }

INNER double uniform(u64 key) { return ((double)(key >> 12) + 0.5) * 0x1p-52; }

INNER double sigmoid(double x) { return 1 / (1 + exp(-x)); }

INNER i64 clamped(i64 x, i64 size) { return x < size ? x : size - 1; }

// noise.permute and noise.unpermute: the keys in either order.
INNER u64 rounds(u64 x, int bits, const u64 *keys, int first, int step) {
    u64 mask = (1ULL << bits) - 1, left = x >> bits, right = x & mask;
    for (int i = 0; i < 6; i++) {
        u64 next = left ^ (mix(right + keys[first + step * i]) & mask);
        left = right;
        right = next;
    }
    return (right << bits) | left;
}

INNER i64 unpermute(i64 x, i64 size, int bits, const u64 *keys) {
    u64 y = rounds((u64)x, bits, keys, 5, -1);
    while (y >= (u64)size) y = rounds(y, bits, keys, 5, -1);
    return (i64)y;
}

// --- the logging policy ---------------------------------------------------------------------------------------

INNER i64 zipf_place(const Constants *c, double u, double head, double top, i64 size) {
    double x = c->zipf_power == 0 ? expm1(u * top) : pow(1 + u * top, 1 / c->zipf_power) - 1;
    return clamped((i64)(head * x), size);
}

INNER i64 place_of(const Constants *c, i64 topic, i64 block) {
    i64 rotation = (i64)(uniform(extend(c->rotation_key, block)) * c->num_topics);
    i64 within = topic - rotation;
    return block * c->num_topics + (within < 0 ? within + c->num_topics : within);
}

// The video that holds a place today.
INNER i64 holder(const Constants *c, i64 place) {
    i64 fresh = unpermute(place, c->num_places, (int)c->takes_bits, c->takes_keys);
    if (fresh >= c->num_new) return place;
    i64 since = ((fresh + 1) * (c->num_days + c->fresh_days) - 1) / c->num_new - c->fresh_days;
    return since <= c->day ? c->num_places + fresh : place;
}

INNER i64 draw_topic(const Constants *c, double u, const i64 *favourite, const double *weight) {
    if (u < c->wander) return clamped((i64)(u / c->wander * c->num_topics), c->num_topics);
    double rest = (u - c->wander) / (1 - c->wander), edge = 0;
    i64 choice = 0;
    for (i64 j = 0; j < c->num_favourites - 1; j++) {
        edge += weight[j];
        choice += rest >= edge;
    }
    return favourite[choice];
}

INNER i64 draw_video(const Constants *c, u64 key, const i64 *favourite, const double *weight, const i64 *burst_video,
                     const double *burst_edge) {
    double u = uniform(key), v = uniform(mix(key));
    if (u < c->explore_share) return (i64)(v * c->fresh_high);
    u -= c->explore_share;
    if (u < c->popularity_share)
        return holder(c, zipf_place(c, v, c->head, c->top, c->num_places));
    u -= c->popularity_share;
    if (u < c->taste_share) {
        i64 topic = draw_topic(c, u / c->taste_share, favourite, weight);
        i64 blocks = c->num_places / c->num_topics;
        return holder(c, place_of(c, topic, zipf_place(c, v, c->inner_head, c->inner_top, blocks)));
    }
    u -= c->taste_share;
    if (u < c->burst_share) {
        i64 low = 0, high = c->num_bursts - 1;  // the first burst whose edge is above v
        while (low < high) {
            i64 middle = (low + high) / 2;
            if (burst_edge[middle] > v) high = middle;
            else low = middle + 1;
        }
        return burst_video[low];
    }
    return clamped(c->fresh_low + (i64)(v * (c->fresh_high - c->fresh_low)), c->fresh_high);
}

// shown[offset[i] ..]: the first depth[i] different videos of the visit's draws.
ENTRY show(i64 visits, const Constants *c, const u64 *key, const i64 *user, const i64 *offset, const i64 *depth,
           const i64 *favourite, const double *weight, const i64 *burst_video, const double *burst_edge, i64 *shown) {
    EACH(i, visits) {
        u64 draws = extend(key[i], c->shown_stream);
        const i64 *likes = favourite + user[i] * c->num_favourites;
        const double *shares = weight + user[i] * c->num_favourites;
        i64 *list = shown + offset[i], n = 0;
        for (i64 draw = 0; n < depth[i]; draw++) {
            i64 video = draw_video(c, extend(draws, draw), likes, shares, burst_video, burst_edge);
            bool again = false;
            for (i64 k = 0; k < n; k++) again |= list[k] == video;
            if (!again) list[n++] = video;
        }
    }
}

// --- the response ---------------------------------------------------------------------------------------------

INNER double taste(const Constants *c, i64 topic, const i64 *favourite, const double *weight) {
    double share = 0;
    for (i64 j = 0; j < c->num_favourites; j++) share += favourite[j] == topic ? weight[j] : 0;
    return (1 - c->wander) * share + c->wander / c->num_topics;
}

INNER double burst(const Constants *c, i64 video, const i64 *bursting, const double *probability) {
    i64 low = 0, high = c->num_bursting;
    while (low < high) {
        i64 middle = (low + high) / 2;
        if (bursting[middle] < video) low = middle + 1;
        else high = middle;
    }
    return low < c->num_bursting && bursting[low] == video ? probability[low] : 0;
}

// p(video) of the logging policy; first: the user's taste for its topic.
INNER double chance(const Constants *c, const Video *v, i64 number, double first, const i64 *bursting,
                    const double *burst_probability) {
    bool holds = c->day < v->replaced_day;
    double p = c->explore_share / c->fresh_high;
    if (holds) p += c->popularity_share * v->popularity + c->taste_share * first * v->topic_popularity;
    if (number >= c->fresh_low && number < c->fresh_high) p += c->fresh_share / (c->fresh_high - c->fresh_low);
    return p + c->burst_share * burst(c, number, bursting, burst_probability);
}

// propensity[offset[i] ..] of shown[offset[i] ..] under the logging policy, as `respond` writes it.
ENTRY propensities(i64 visits, const Constants *c, const u64 *key, const i64 *user, const i64 *offset,
                   const i64 *depth, const i64 *favourite, const double *weight, const double *video,
                   const i64 *bursting, const double *burst_probability, const i64 *shown, float *propensity) {
    EACH(i, visits) {
        const i64 *likes = favourite + user[i] * c->num_favourites;
        const double *shares = weight + user[i] * c->num_favourites;
        double above = 0;
        for (i64 z = offset[i]; z < offset[i] + depth[i]; z++) {
            const Video *v = (const Video *)video + (c->by_row ? z : shown[z]);
            double p = chance(c, v, shown[z], taste(c, (i64)v->topic, likes, shares), bursting, burst_probability);
            propensity[z] = (float)(p / (1 - above));
            above += p;
        }
    }
}

// The columns of the impressions at offset[i] .. of each visit. `video` holds records of behaviour.RECORD doubles, by
// the video's number, or one a row where by_row. tired: what a topic has lost of the user's interest, [users, topics];
// not read where num_tired is 0.
ENTRY respond(i64 visits, const Constants *c, const u64 *key, const i64 *user, const i64 *offset, const i64 *depth,
              const i64 *intent, const i64 *start, const double *evening, const i64 *user_id, const i64 *session_id,
              const i64 *favourite, const double *weight, const double *bias, const i64 *language,
              const double *video, const i64 *bursting, const double *burst_probability, const double *examination,
              i64 num_tired, const double *tired, const i64 *shown, i64 *out_user, i64 *out_item, i64 *out_time, i64 *out_session, double *out_relevance,
              float *out_propensity, float *out_watch, i16 *out_position, i8 *out_label, i8 *out_liked,
              i8 *out_disliked, i8 *out_shared) {
    EACH(i, visits) {
        const i64 *likes = favourite + user[i] * c->num_favourites;
        const double *shares = weight + user[i] * c->num_favourites;
        double above = 0;
        i64 now = start[i];
        for (i64 position = 0; position < depth[i]; position++) {
            i64 z = offset[i] + position, number = shown[z];
            const Video *v = (const Video *)video + (c->by_row ? z : number);
            double first = taste(c, (i64)v->topic, likes, shares);
            double second = taste(c, (i64)v->second_topic, likes, shares);

            double p = chance(c, v, number, first, bursting, burst_probability);
            double propensity = p / (1 - above);
            above += p;

            double affinity = (1 - v->second_share) * log(c->num_topics * first);
            affinity += v->second_share * log(c->num_topics * second);
            double wanted = (intent[i] == v->topic ? 1 - v->second_share : 0);
            wanted += intent[i] == v->second_topic ? v->second_share : 0;
            double age = c->day - v->upload_day;
            double interest = c->taste_gain * affinity + v->appeal + bias[user[i]];
            if (!(v->language == 0 || v->language == language[user[i]])) interest -= c->language_penalty;
            interest += c->freshness_gain * exp(-age / c->freshness_days);
            interest += c->context_gain * evening[i] * v->length;
            interest += c->intent_gain * wanted;
            if (num_tired) {
                const double *lost = tired + user[i] * c->num_topics;
                interest -= (1 - v->second_share) * lost[(i64)v->topic];
                interest -= v->second_share * lost[(i64)v->second_topic];
            }

            u64 own = extend(extend(key[i], c->response_stream), number);
            double enough = v->duration < c->long_view ? v->duration : c->long_view;
            double relevance = c->feed ? 0 : sigmoid(c->click_bias + interest);
            bool watches = c->feed || uniform(own) < relevance * examination[position];
            double watched = 0;
            bool finished = false, liked = false, disliked = false, shared = false;
            if (watches) {
                double middle = exp(c->watch_bias + c->watch_gain * interest) * v->stretch;
                if (c->feed) relevance = middle / (middle + enough);
                double u = uniform(extend(own, 0)), wished = middle * u / (1 - u);
                finished = wished >= enough;
                watched = wished < v->duration ? floor(wished * 1000) / 1000 : v->duration;
                double x = c->reaction_gain * interest + c->reaction_watch * watched / v->duration;
                liked = uniform(extend(own, 1)) < sigmoid(c->like_bias + x);
                shared = uniform(extend(own, 2)) < sigmoid(c->share_bias + x);
                disliked = !liked && uniform(extend(own, 3)) < sigmoid(c->dislike_bias - x);
            }
            out_user[z] = user_id[i];
            out_item[z] = (i64)rounds((u64)number, 20, c->item_keys, 0, 1);
            out_time[z] = now;
            out_session[z] = session_id[i];
            out_relevance[z] = relevance;
            out_propensity[z] = (float)propensity;
            out_watch[z] = (float)watched;
            out_position[z] = (i16)position;
            out_label[z] = c->feed ? finished : watches;
            out_liked[z] = liked;
            out_disliked[z] = disliked;
            out_shared[z] = shared;
            now += c->step_us + (c->feed ? (i64)(watched * 1000000) : 0);
        }
    }
}

// --- the content of a column ------------------------------------------------------------------------------------

// Adds to total[] a 64-bit digest of 8-byte words that depends on their order; its sum is the same for any number of
// rows, which share the work.
ENTRY digest(i64 shares, const u64 *words, i64 count, u64 *total) {
    EACH(share, shares) {
        u64 sum = 0;
        for (i64 i = share; i < count; i += shares) sum += mix(words[i] ^ ((u64)i * 0x9E3779B97F4A7C15ULL));
        total[share] += sum;
    }
}

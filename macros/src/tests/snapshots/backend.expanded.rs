/// One item of each kind.
pub trait Everything: Backend {
    /// Wrapped with the backend.
    type Transaction: Transaction;
    /// Not an operation.
    fn set_limit(&mut self, limit: usize);
    /// The layer is called, too; there is a default body.
    fn set_name(&mut self, name: String) {
        drop(name);
    }
    /// The layer modifies the result.
    fn describe(&self) -> impl Future<Output = Result<Text>> + Send;
    /// Borrowed and owned arguments, with names that the expansion also uses.
    fn get(
        &self,
        key: &Key,
        layer: Option<&'static str>,
        inner: Cow<'_, [u8]>,
        call: fn(&str) -> bool,
    ) -> impl Future<Output = Result<Vec<u8>>> + Send;
    /// A batch.
    fn set_many(
        &self,
        items: &[(Key, Value)],
    ) -> impl Future<Output = Result<BatchReport>> + Send;
    /// A batch with a default body.
    fn get_many(&self, keys: &[Key]) -> impl Future<Output = Result<Vec<Value>>> + Send {
        async move { Ok(keys.iter().map(Value::of).collect()) }
    }
    /// Returns the wrapped type.
    fn begin(&self) -> impl Future<Output = Result<Self::Transaction>> + Send;
    /// Ends it.
    fn close(&self) -> impl Future<Output = Result<()>> + Send;
    /// Returns a stream. Its name is a keyword.
    fn r#yield(&self, prefix: &str) -> impl Stream<Item = Result<Record>> + Send;
    /// Its name is a keyword, too.
    fn r#move(&self, r#type: u8) -> impl Future<Output = Result<()>> + Send;
}
/// [`Everything`] for a wrapper: each method has the backend inside as an argument, and forwards to it unless it is overridden.
#[diagnostic::on_unimplemented(
    message = "the wrapper `{Self}` does not have the capability `Everything`"
)]
pub trait EverythingWrapper<Inner: Everything>: Sized {
    /// Wrapped with the backend.
    type Transaction: Transaction;
    /// [`Everything::set_limit`], by default of the backend inside.
    fn set_limit(&mut self, inner: &mut Inner, limit: usize) {
        <Inner as Everything>::set_limit(inner, limit)
    }
    /// [`Everything::set_name`], by default of the backend inside.
    fn set_name(&mut self, inner: &mut Inner, name: String) {
        <Inner as Everything>::set_name(inner, name)
    }
    /// [`Everything::describe`], by default of the backend inside.
    fn describe(&self, inner: &Inner) -> impl Future<Output = Result<Text>> + Send {
        <Inner as Everything>::describe(inner)
    }
    /// [`Everything::get`], by default of the backend inside.
    fn get(
        &self,
        __inner: &Inner,
        key: &Key,
        layer: Option<&'static str>,
        inner: Cow<'_, [u8]>,
        call: fn(&str) -> bool,
    ) -> impl Future<Output = Result<Vec<u8>>> + Send {
        <Inner as Everything>::get(__inner, key, layer, inner, call)
    }
    /// [`Everything::set_many`], by default of the backend inside.
    fn set_many(
        &self,
        inner: &Inner,
        items: &[(Key, Value)],
    ) -> impl Future<Output = Result<BatchReport>> + Send {
        <Inner as Everything>::set_many(inner, items)
    }
    /// [`Everything::get_many`], by default of the backend inside.
    fn get_many(
        &self,
        inner: &Inner,
        keys: &[Key],
    ) -> impl Future<Output = Result<Vec<Value>>> + Send {
        <Inner as Everything>::get_many(inner, keys)
    }
    /// [`Everything::begin`].
    fn begin(
        &self,
        inner: &Inner,
    ) -> impl Future<Output = Result<Self::Transaction>> + Send;
    /// [`Everything::close`], by default of the backend inside.
    fn close(&self, inner: &Inner) -> impl Future<Output = Result<()>> + Send {
        <Inner as Everything>::close(inner)
    }
    /// [`Everything::r#yield`], by default of the backend inside.
    fn r#yield(
        &self,
        inner: &Inner,
        prefix: &str,
    ) -> impl Stream<Item = Result<Record>> + Send {
        <Inner as Everything>::r#yield(inner, prefix)
    }
    /// [`Everything::r#move`], by default of the backend inside.
    fn r#move(
        &self,
        inner: &Inner,
        r#type: u8,
    ) -> impl Future<Output = Result<()>> + Send {
        <Inner as Everything>::r#move(inner, r#type)
    }
}
const _: () = {
    struct __DescribeCall {}
    impl<'__on, __B: Everything> ::gateway_storage::layer::Call<&'__on __B>
    for __DescribeCall {
        type Output = Text;
        const OPERATION: ::gateway_storage::layer::Operation = ::gateway_storage::layer::Operation::new(
                "describe",
                ::gateway_storage::layer::OperationKind::Control,
            )
            .harmless()
            .operator();
        #[inline]
        async fn run(&self, on: &'__on __B) -> ::gateway_storage::Result<Text> {
            <__B as Everything>::describe(on).await
        }
    }
    struct __GetCall<'__call> {
        key: &'__call Key,
        layer: Option<&'static str>,
        inner: Cow<'__call, [u8]>,
        call: fn(&str) -> bool,
    }
    impl<'__on, '__call, __B: Everything> ::gateway_storage::layer::Call<&'__on __B>
    for __GetCall<'__call> {
        type Output = Vec<u8>;
        const OPERATION: ::gateway_storage::layer::Operation = ::gateway_storage::layer::Operation::new(
            "get",
            ::gateway_storage::layer::OperationKind::Read,
        );
        #[inline]
        async fn run(&self, on: &'__on __B) -> ::gateway_storage::Result<Vec<u8>> {
            <__B as Everything>::get(
                    on,
                    ::core::clone::Clone::clone(&self.key),
                    ::core::clone::Clone::clone(&self.layer),
                    ::core::clone::Clone::clone(&self.inner),
                    ::core::clone::Clone::clone(&self.call),
                )
                .await
        }
    }
    struct __SetManyCall<'__call> {
        items: &'__call [(Key, Value)],
    }
    impl<'__on, '__call, __B: Everything> ::gateway_storage::layer::Call<&'__on __B>
    for __SetManyCall<'__call> {
        type Output = BatchReport;
        const OPERATION: ::gateway_storage::layer::Operation = ::gateway_storage::layer::Operation::new(
                "set_many",
                ::gateway_storage::layer::OperationKind::Write,
            )
            .overwrites();
        fn batch_size(&self) -> ::core::option::Option<usize> {
            ::core::option::Option::Some(self.items.len())
        }
        fn failure(
            output: &BatchReport,
        ) -> ::core::option::Option<&::gateway_storage::Error> {
            #[allow(unused_imports)]
            use ::gateway_storage::layer::NoReport as _;
            ::gateway_storage::layer::Outcomes::<BatchReport>::failure(output)
        }
        #[inline]
        async fn run(&self, on: &'__on __B) -> ::gateway_storage::Result<BatchReport> {
            <__B as Everything>::set_many(on, ::core::clone::Clone::clone(&self.items))
                .await
        }
        fn failed_items(
            output: &mut BatchReport,
            again: impl ::core::ops::FnMut(&mut ::gateway_storage::Error) -> bool,
        ) -> ::std::vec::Vec<usize> {
            #[allow(unused_imports)]
            use ::gateway_storage::layer::NoReport as _;
            ::gateway_storage::layer::Outcomes::<
                BatchReport,
            >::failed_items(output, again)
        }
        async fn run_items(
            &self,
            on: &'__on __B,
            items: &[usize],
        ) -> ::gateway_storage::Result<BatchReport> {
            let part: ::std::vec::Vec<_> = items
                .iter()
                .map(|at| ::core::clone::Clone::clone(&self.items[*at]))
                .collect();
            <__B as Everything>::set_many(on, &part).await
        }
        fn merge_items(
            report: &mut BatchReport,
            items: &[usize],
            result: ::gateway_storage::Result<BatchReport>,
        ) {
            #[allow(unused_imports)]
            use ::gateway_storage::layer::NoReport as _;
            ::gateway_storage::layer::Outcomes::<
                BatchReport,
            >::merge_items(report, items, result);
        }
    }
    struct __GetManyCall<'__call> {
        keys: &'__call [Key],
    }
    impl<'__on, '__call, __B: Everything> ::gateway_storage::layer::Call<&'__on __B>
    for __GetManyCall<'__call> {
        type Output = Vec<Value>;
        const OPERATION: ::gateway_storage::layer::Operation = ::gateway_storage::layer::Operation::new(
            "get_many",
            ::gateway_storage::layer::OperationKind::Read,
        );
        fn batch_size(&self) -> ::core::option::Option<usize> {
            ::core::option::Option::Some(self.keys.len())
        }
        fn failure(
            output: &Vec<Value>,
        ) -> ::core::option::Option<&::gateway_storage::Error> {
            #[allow(unused_imports)]
            use ::gateway_storage::layer::NoReport as _;
            ::gateway_storage::layer::Outcomes::<Vec<Value>>::failure(output)
        }
        #[inline]
        async fn run(&self, on: &'__on __B) -> ::gateway_storage::Result<Vec<Value>> {
            <__B as Everything>::get_many(on, ::core::clone::Clone::clone(&self.keys))
                .await
        }
        fn failed_items(
            output: &mut Vec<Value>,
            again: impl ::core::ops::FnMut(&mut ::gateway_storage::Error) -> bool,
        ) -> ::std::vec::Vec<usize> {
            #[allow(unused_imports)]
            use ::gateway_storage::layer::NoReport as _;
            ::gateway_storage::layer::Outcomes::<Vec<Value>>::failed_items(output, again)
        }
        async fn run_items(
            &self,
            on: &'__on __B,
            items: &[usize],
        ) -> ::gateway_storage::Result<Vec<Value>> {
            let part: ::std::vec::Vec<_> = items
                .iter()
                .map(|at| ::core::clone::Clone::clone(&self.keys[*at]))
                .collect();
            <__B as Everything>::get_many(on, &part).await
        }
        fn merge_items(
            report: &mut Vec<Value>,
            items: &[usize],
            result: ::gateway_storage::Result<Vec<Value>>,
        ) {
            #[allow(unused_imports)]
            use ::gateway_storage::layer::NoReport as _;
            ::gateway_storage::layer::Outcomes::<
                Vec<Value>,
            >::merge_items(report, items, result);
        }
    }
    struct __BeginCall {}
    impl<'__on, __B: Everything> ::gateway_storage::layer::Call<&'__on __B>
    for __BeginCall {
        type Output = <__B as Everything>::Transaction;
        const OPERATION: ::gateway_storage::layer::Operation = ::gateway_storage::layer::Operation::new(
            "begin",
            ::gateway_storage::layer::OperationKind::Control,
        );
        #[inline]
        async fn run(
            &self,
            on: &'__on __B,
        ) -> ::gateway_storage::Result<<__B as Everything>::Transaction> {
            <__B as Everything>::begin(on).await
        }
    }
    struct __CloseCall {}
    impl<'__on, __B: Everything> ::gateway_storage::layer::Call<&'__on __B>
    for __CloseCall {
        type Output = ();
        const OPERATION: ::gateway_storage::layer::Operation = ::gateway_storage::layer::Operation::new(
                "close",
                ::gateway_storage::layer::OperationKind::Control,
            )
            .replayable()
            .operator()
            .closes();
        #[inline]
        async fn run(&self, on: &'__on __B) -> ::gateway_storage::Result<()> {
            <__B as Everything>::close(on).await
        }
    }
    struct __MoveCall {
        r#type: u8,
    }
    impl<'__on, __B: Everything> ::gateway_storage::layer::Call<&'__on __B>
    for __MoveCall {
        type Output = ();
        const OPERATION: ::gateway_storage::layer::Operation = ::gateway_storage::layer::Operation::new(
            "move",
            ::gateway_storage::layer::OperationKind::Write,
        );
        #[inline]
        async fn run(&self, on: &'__on __B) -> ::gateway_storage::Result<()> {
            <__B as Everything>::r#move(on, ::core::clone::Clone::clone(&self.r#type))
                .await
        }
    }
    #[deny(clippy::missing_trait_methods)]
    impl<__L: ::gateway_storage::layer::Layer, __B: Everything> Everything
    for ::gateway_storage::layer::Layered<__L, __B> {
        type Transaction = LayeredTransaction<__L, <__B as Everything>::Transaction>;
        fn set_limit(&mut self, limit: usize) {
            <__B as Everything>::set_limit(self.inner_mut(), limit)
        }
        fn set_name(&mut self, name: String) {
            ::gateway_storage::layer::Layer::set_name(
                self.layer_mut(),
                ::core::clone::Clone::clone(&name),
            );
            <__B as Everything>::set_name(self.inner_mut(), name)
        }
        #[inline]
        async fn describe(&self) -> ::gateway_storage::Result<Text> {
            let call = __DescribeCall {};
            let (layer, inner) = (self.layer(), self.inner());
            let mut output = ::gateway_storage::layer::Layer::around(layer, inner, call)
                .await?;
            ::gateway_storage::layer::Layer::complete(layer, &mut output);
            ::core::result::Result::Ok(output)
        }
        #[inline]
        async fn get(
            &self,
            key: &Key,
            layer: Option<&'static str>,
            inner: Cow<'_, [u8]>,
            call: fn(&str) -> bool,
        ) -> ::gateway_storage::Result<Vec<u8>> {
            let call = __GetCall {
                key,
                layer,
                inner,
                call,
            };
            let (layer, inner) = (self.layer(), self.inner());
            ::gateway_storage::layer::Layer::around(layer, inner, call).await
        }
        #[inline]
        async fn set_many(
            &self,
            items: &[(Key, Value)],
        ) -> ::gateway_storage::Result<BatchReport> {
            let call = __SetManyCall { items };
            let (layer, inner) = (self.layer(), self.inner());
            ::gateway_storage::layer::Layer::around(layer, inner, call).await
        }
        #[inline]
        async fn get_many(&self, keys: &[Key]) -> ::gateway_storage::Result<Vec<Value>> {
            let call = __GetManyCall { keys };
            let (layer, inner) = (self.layer(), self.inner());
            ::gateway_storage::layer::Layer::around(layer, inner, call).await
        }
        #[inline]
        async fn begin(&self) -> ::gateway_storage::Result<Self::Transaction> {
            let call = __BeginCall {};
            let (layer, inner) = (self.layer(), self.inner());
            ::core::result::Result::Ok(
                LayeredTransaction::new(
                    ::core::clone::Clone::clone(layer),
                    ::gateway_storage::layer::Layer::around(layer, inner, call).await?,
                ),
            )
        }
        #[inline]
        async fn close(&self) -> ::gateway_storage::Result<()> {
            let call = __CloseCall {};
            let (layer, inner) = (self.layer(), self.inner());
            ::gateway_storage::layer::Layer::around(layer, inner, call).await
        }
        fn r#yield(&self, prefix: &str) -> impl Stream<Item = Result<Record>> + Send {
            let items = <__B as Everything>::r#yield(self.inner(), prefix);
            ::gateway_storage::layer::Layer::around_stream(
                self.layer(),
                ::gateway_storage::layer::Operation::new(
                        "yield",
                        ::gateway_storage::layer::OperationKind::Read,
                    )
                    .backup(),
                items,
            )
        }
        #[inline]
        async fn r#move(&self, r#type: u8) -> ::gateway_storage::Result<()> {
            let call = __MoveCall { r#type };
            let (layer, inner) = (self.layer(), self.inner());
            ::gateway_storage::layer::Layer::around(layer, inner, call).await
        }
    }
    #[deny(clippy::missing_trait_methods)]
    impl<__A: Everything, __B: Everything> Everything
    for ::gateway_storage::Either<__A, __B>
    where
        Self: Backend,
    {
        type Transaction = ::gateway_storage::Either<
            <__A as Everything>::Transaction,
            <__B as Everything>::Transaction,
        >;
        #[inline]
        fn set_limit(&mut self, limit: usize) {
            match self {
                ::gateway_storage::Either::Left(__on) => {
                    <__A as Everything>::set_limit(__on, limit)
                }
                ::gateway_storage::Either::Right(__on) => {
                    <__B as Everything>::set_limit(__on, limit)
                }
            }
        }
        #[inline]
        fn set_name(&mut self, name: String) {
            match self {
                ::gateway_storage::Either::Left(__on) => {
                    <__A as Everything>::set_name(__on, name)
                }
                ::gateway_storage::Either::Right(__on) => {
                    <__B as Everything>::set_name(__on, name)
                }
            }
        }
        #[inline]
        fn describe(&self) -> impl Future<Output = Result<Text>> + Send {
            match self {
                ::gateway_storage::Either::Left(__on) => {
                    ::gateway_storage::either::Run::Left(
                        <__A as Everything>::describe(__on),
                    )
                }
                ::gateway_storage::Either::Right(__on) => {
                    ::gateway_storage::either::Run::Right(
                        <__B as Everything>::describe(__on),
                    )
                }
            }
        }
        #[inline]
        fn get(
            &self,
            key: &Key,
            layer: Option<&'static str>,
            inner: Cow<'_, [u8]>,
            call: fn(&str) -> bool,
        ) -> impl Future<Output = Result<Vec<u8>>> + Send {
            match self {
                ::gateway_storage::Either::Left(__on) => {
                    ::gateway_storage::either::Run::Left(
                        <__A as Everything>::get(__on, key, layer, inner, call),
                    )
                }
                ::gateway_storage::Either::Right(__on) => {
                    ::gateway_storage::either::Run::Right(
                        <__B as Everything>::get(__on, key, layer, inner, call),
                    )
                }
            }
        }
        #[inline]
        fn set_many(
            &self,
            items: &[(Key, Value)],
        ) -> impl Future<Output = Result<BatchReport>> + Send {
            match self {
                ::gateway_storage::Either::Left(__on) => {
                    ::gateway_storage::either::Run::Left(
                        <__A as Everything>::set_many(__on, items),
                    )
                }
                ::gateway_storage::Either::Right(__on) => {
                    ::gateway_storage::either::Run::Right(
                        <__B as Everything>::set_many(__on, items),
                    )
                }
            }
        }
        #[inline]
        fn get_many(
            &self,
            keys: &[Key],
        ) -> impl Future<Output = Result<Vec<Value>>> + Send {
            match self {
                ::gateway_storage::Either::Left(__on) => {
                    ::gateway_storage::either::Run::Left(
                        <__A as Everything>::get_many(__on, keys),
                    )
                }
                ::gateway_storage::Either::Right(__on) => {
                    ::gateway_storage::either::Run::Right(
                        <__B as Everything>::get_many(__on, keys),
                    )
                }
            }
        }
        #[inline]
        fn begin(&self) -> impl Future<Output = Result<Self::Transaction>> + Send {
            match self {
                ::gateway_storage::Either::Left(__on) => {
                    ::gateway_storage::either::Run::Left(
                        ::gateway_storage::either::map_ok(
                            <__A as Everything>::begin(__on),
                            ::gateway_storage::Either::Left,
                        ),
                    )
                }
                ::gateway_storage::Either::Right(__on) => {
                    ::gateway_storage::either::Run::Right(
                        ::gateway_storage::either::map_ok(
                            <__B as Everything>::begin(__on),
                            ::gateway_storage::Either::Right,
                        ),
                    )
                }
            }
        }
        #[inline]
        fn close(&self) -> impl Future<Output = Result<()>> + Send {
            match self {
                ::gateway_storage::Either::Left(__on) => {
                    ::gateway_storage::either::Run::Left(
                        <__A as Everything>::close(__on),
                    )
                }
                ::gateway_storage::Either::Right(__on) => {
                    ::gateway_storage::either::Run::Right(
                        <__B as Everything>::close(__on),
                    )
                }
            }
        }
        #[inline]
        fn r#yield(&self, prefix: &str) -> impl Stream<Item = Result<Record>> + Send {
            match self {
                ::gateway_storage::Either::Left(__on) => {
                    ::gateway_storage::either::Run::Left(
                        <__A as Everything>::r#yield(__on, prefix),
                    )
                }
                ::gateway_storage::Either::Right(__on) => {
                    ::gateway_storage::either::Run::Right(
                        <__B as Everything>::r#yield(__on, prefix),
                    )
                }
            }
        }
        #[inline]
        fn r#move(&self, r#type: u8) -> impl Future<Output = Result<()>> + Send {
            match self {
                ::gateway_storage::Either::Left(__on) => {
                    ::gateway_storage::either::Run::Left(
                        <__A as Everything>::r#move(__on, r#type),
                    )
                }
                ::gateway_storage::Either::Right(__on) => {
                    ::gateway_storage::either::Run::Right(
                        <__B as Everything>::r#move(__on, r#type),
                    )
                }
            }
        }
    }
    #[deny(clippy::missing_trait_methods)]
    impl<__W: EverythingWrapper<__B>, __B: Everything> Everything
    for ::gateway_storage::wrap::Wrapped<__W, __B>
    where
        Self: Backend,
    {
        type Transaction = <__W as EverythingWrapper<__B>>::Transaction;
        #[inline]
        fn set_limit(&mut self, limit: usize) {
            let (__wrapper, __inner) = self.parts_mut();
            <__W as EverythingWrapper<__B>>::set_limit(__wrapper, __inner, limit)
        }
        #[inline]
        fn set_name(&mut self, name: String) {
            let (__wrapper, __inner) = self.parts_mut();
            <__W as EverythingWrapper<__B>>::set_name(__wrapper, __inner, name)
        }
        #[inline]
        fn describe(&self) -> impl Future<Output = Result<Text>> + Send {
            let (__wrapper, __inner) = self.parts();
            <__W as EverythingWrapper<__B>>::describe(__wrapper, __inner)
        }
        #[inline]
        fn get(
            &self,
            key: &Key,
            layer: Option<&'static str>,
            inner: Cow<'_, [u8]>,
            call: fn(&str) -> bool,
        ) -> impl Future<Output = Result<Vec<u8>>> + Send {
            let (__wrapper, __inner) = self.parts();
            <__W as EverythingWrapper<
                __B,
            >>::get(__wrapper, __inner, key, layer, inner, call)
        }
        #[inline]
        fn set_many(
            &self,
            items: &[(Key, Value)],
        ) -> impl Future<Output = Result<BatchReport>> + Send {
            let (__wrapper, __inner) = self.parts();
            <__W as EverythingWrapper<__B>>::set_many(__wrapper, __inner, items)
        }
        #[inline]
        fn get_many(
            &self,
            keys: &[Key],
        ) -> impl Future<Output = Result<Vec<Value>>> + Send {
            let (__wrapper, __inner) = self.parts();
            <__W as EverythingWrapper<__B>>::get_many(__wrapper, __inner, keys)
        }
        #[inline]
        fn begin(&self) -> impl Future<Output = Result<Self::Transaction>> + Send {
            let (__wrapper, __inner) = self.parts();
            <__W as EverythingWrapper<__B>>::begin(__wrapper, __inner)
        }
        #[inline]
        fn close(&self) -> impl Future<Output = Result<()>> + Send {
            let (__wrapper, __inner) = self.parts();
            <__W as EverythingWrapper<__B>>::close(__wrapper, __inner)
        }
        #[inline]
        fn r#yield(&self, prefix: &str) -> impl Stream<Item = Result<Record>> + Send {
            let (__wrapper, __inner) = self.parts();
            <__W as EverythingWrapper<__B>>::r#yield(__wrapper, __inner, prefix)
        }
        #[inline]
        fn r#move(&self, r#type: u8) -> impl Future<Output = Result<()>> + Send {
            let (__wrapper, __inner) = self.parts();
            <__W as EverythingWrapper<__B>>::r#move(__wrapper, __inner, r#type)
        }
    }
};
